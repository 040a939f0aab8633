"""MSRs and CR8 of the APIC, the same in each way of handling the TPR and natively: tables, specification, programs."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

from fastmmu import Action, Config, EventError, Exit, Host, Machine, Policy, StateError, TraceError
from fastmmu.ops import Op
from fastmmu.reference.cpu.processors import Processors
from tests.support.apic_destinations import Receiver, reached
from tests.support.apic_guest import PAGE, bare
from tests.support.apic_msrs import MODES, MSRS, refused
from tests.support.ipi_programs import Event, run
from tests.support.tpr_ways import HOST_WAYS, WAYS

PROGRAMS = int(os.environ.get("FASTMMU_EXAMPLES", "12"))
TPR, EOI, SVR, LDR, ICR, ICR_HIGH = 0x80, 0xB0, 0xF0, 0xD0, 0x300, 0x310
IDS = {name: config.get("apic_id", 0) for name, config in WAYS.items()}
WIDTH = 46  # MAXPHYADDR of these guests
TO_MODE = {"xAPIC": [0xFEE0_0900], "x2APIC": [0xFEE0_0D00], "disabled": [0xFEE0_0100]}


def tried(act: Any, *arguments: Any) -> Any:
    """What it gives; of #GP the word alone."""
    try:
        return act(*arguments)
    except StateError as error:
        return str(error).split("(")[0]


def processor(id: int, handler: str = "eoi", length: int = 0) -> Processors:
    """One by the specification, whatever its id."""
    want = Processors(id + 1, handler, length)
    want.all[id].apic.write(SVR, 0x1FF)
    return want


def delivered(m: Machine) -> list[tuple[int, int]]:
    return [tuple(each) for each in m.apic.deliveries]


# ---- every register ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_every_msr_in_every_mode(way: str) -> None:
    """Reads, and writes of values some bits of which are reserved: refused as the tables say, else as specified."""
    id = IDS[way]
    for mode in MODES:
        m, want = bare(**WAYS[way]), processor(id)
        m.apic.write(SVR, 0x1FF)
        for value in TO_MODE[mode]:
            m.apic.wrmsr(0x1B, value)
            want.write_msr(id, 0x1B, value)
        for msr in MSRS:
            got = tried(m.apic.rdmsr, msr)
            assert got == tried(want.read_msr, id, msr), (mode, hex(msr))
            assert (got == "#GP") == refused(mode, msr, None), (mode, hex(msr))
            if msr == 0x1B:
                continue
            for value in (0, 1, 0x51, 0x61, 0x80, 0x100, 0x1FF, 0x1_0000, 0x8_0000, 1 << 31, 1 << 32, 1 << 63):
                got = tried(m.apic.wrmsr, msr, value)
                assert got == tried(want.write_msr, id, msr, value), (mode, hex(msr), hex(value))
                assert (got == "#GP") == refused(mode, msr, value, WIDTH), (mode, hex(msr), hex(value))
        assert [tried(m.apic.rdmsr, msr) for msr in MSRS] == [tried(want.read_msr, id, msr) for msr in MSRS]
        assert delivered(m) == want.all[id].delivered


@pytest.mark.parametrize("way", WAYS)
def test_every_change_of_mode(way: str) -> None:
    """And each bit of IA32_APIC_BASE, from each mode."""
    for mode in MODES:
        m = bare(**WAYS[way])
        for value in [*(0xFEE0_0000 | each for each in (0, 0x400, 0x800, 0xC00)), *(1 << bit for bit in range(64))]:
            value |= MODES[mode] if value < 0x1000 else 0
            assert (tried(m.apic.wrmsr, 0x1B, value) == "#GP") == refused(mode, 0x1B, value, WIDTH), (mode, hex(value))
            m.apic.wrmsr(0x1B, 0xFEE0_0000)
            m.apic.wrmsr(0x1B, 0xFEE0_0800)
            for back in TO_MODE[mode]:
                m.apic.wrmsr(0x1B, back)
            assert m.apic.rdmsr(0x1B) == TO_MODE[mode][-1]


@pytest.mark.parametrize("way", WAYS)
def test_cr8_in_every_mode(way: str) -> None:
    for mode in MODES:
        m = bare(**WAYS[way])
        for value in TO_MODE[mode]:
            m.apic.wrmsr(0x1B, value)
        for value in range(16):
            m.apic.write_cr8(value)
            assert m.apic.read_cr8() == value == m.apic.page[TPR] >> 4
        for value in (16, 17, 0xF0, 1 << 32, 1 << 63):
            with pytest.raises(StateError, match=rf"^#GP\(0\): cr8={value:#x} has bits above 3; give 0 to 15"):
                m.apic.write_cr8(value)
        assert m.apic.read_cr8() == 15


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["x2APIC", "disabled"])
def test_nothing_is_in_the_page_then(way: str, mode: str) -> None:
    """What is stored there reaches no register; it reads as ones (KVM_X86_QUIRK_LAPIC_MMIO_HOLE), or is memory."""
    m = bare(**WAYS[way])
    m.apic.write(SVR, 0x1FF)
    m.apic.write(TPR, 0x30)
    m.apic.wrmsr(0x1B, TO_MODE[mode][0])
    before = m.apic.page
    for offset in (TPR, EOI, SVR, LDR, ICR, ICR_HIGH, 0x20, 0x280, 0x320, 0x380, 0x3F0):
        for size in (1, 2, 4, 8):
            if WAYS[way]["tpr"] not in ("flexpriority", "apicv") or way == "native":
                assert m.apic.read(offset, size) == m.load(PAGE + offset, size).value == (1 << 8 * size) - 1
            m.apic.write(offset, 0x61 | 1 << 18, size)
            m.store(PAGE + offset, 0x51, size)
    assert (m.apic.page, m.apic.deliveries, m.apic.read_cr8()) == (before, [], 3)
    m.apic.wrmsr(0x1B, 0xFEE0_0000)
    m.apic.wrmsr(0x1B, 0xFEE0_0800)
    assert m.apic.read(TPR) == 0x30


# ---- events of a trace -------------------------------------------------------------------------------------------


def test_events_that_fault_say_which_register_and_why() -> None:
    for config in WAYS.values():
        for setup, event, text in (
            (0, (Op.CR8_WRITE, 16), r"event 1: #GP\(0\): cr8=0x10 has bits above 3; give 0 to 15"),
            (0, (Op.MSR_READ, 0x808 << 32), r"event 1: #GP\(0\): RDMSR of 0x808: the APIC is in xAPIC mode"),
            (0, (Op.MSR_WRITE, 0x1B << 32 | 0xFEE0_0400), "event 1: .*of a disabled APIC .bit 11 is 0.; set both"),
            (0xD00, (Op.MSR_WRITE, 0x808 << 32 | 0x100), "event 1: .*WRMSR of 0x808 with 0x100: bits 0x100 are"),
            (0xD00, (Op.MSR_WRITE, 0x1B << 32 | 0xFEE0_0900), "event 1: .*by way of disabled"),
            (0xD00, (Op.IPI, 1 << 32 | 1 << 20 | 0x51), "event 1: .*WRMSR of 0x830 with 0x100100051: bits 0x100000"),
        ):
            m = Machine(Config(memory="64M", **config))
            events: list[Event] = [(Op.MSR_WRITE, 0x1B << 32 | 0xFEE0_0000 | setup or 0x900), event]
            if not setup:
                events[0] = (Op.READ, 0x40_0000)
            op = np.array([op for op, _ in events], np.uint8)
            addr = np.array([addr for _, addr in events], np.uint64)
            with pytest.raises(EventError, match=text) as caught:
                m.run(op, (op <= 3).astype(np.uint8), addr)
            assert isinstance(caught.value, TraceError)
            assert isinstance(caught.value, StateError)


def test_an_event_without_an_apic_is_named() -> None:
    for op in (each for each in Op if Op.APIC_READ <= each <= Op.TSC_DEADLINE):
        m = Machine(Config(memory="64M"))
        with pytest.raises(TraceError, match=rf"event 0: the guest has no APIC for {op.name}; give it one with Config"):
            m.run(np.array([op], np.uint8), np.zeros(1, np.uint8), np.array([0x1234], np.uint64))


def test_an_event_whose_address_says_nothing() -> None:
    for op, addr in ((Op.DEVICE_INTERRUPT, 0x200), (Op.DEVICE_INTERRUPT, 1 << 40), (Op.INTERRUPT_FLAG, 2)):
        m = Machine(Config(memory="64M", tpr="trap"))
        with pytest.raises(TraceError, match=rf"event 0: {addr:#x} is no address of such an event; a DEVICE_INTERRUPT"):
            m.run(np.array([op], np.uint8), np.zeros(1, np.uint8), np.array([addr], np.uint64))


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_a_handler_in_python_refuses_or_leaves_it_to_kvm(mmu: str) -> None:
    class Refusing(Policy):
        action: Action | None = None

        def on_wrmsr(self, machine: Machine, exit: Exit) -> Action:
            return machine.default() if self.action is None else self.action

        on_cr_access = on_wrmsr

    policy = Refusing()
    m = bare(policy, mmu=mmu, tpr="trap", tpr_shadow=False)
    for action, text in (
        (None, "the APIC is in xAPIC mode"),
        (Action.INJECT_GENERAL_PROTECTION, "the APIC is in xAPIC mode"),
    ):
        policy.action = action
        with pytest.raises(StateError, match=f"WRMSR of 0x808 with 0x50: {text}"):
            m.apic.wrmsr(0x808, 0x50)
    with pytest.raises(StateError, match="WRMSR of 0x1b with 0xfee00d00: the VMM injects it"):
        m.apic.wrmsr(0x1B, 0xFEE0_0D00)
    policy.action = None
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)
    assert m.apic.rdmsr(0x1B) == 0xFEE0_0D00
    with pytest.raises(StateError, match="cr8=0x10"):
        m.apic.write_cr8(16)
    m.apic.write_cr8(7)
    assert m.apic.read_cr8() == 7


# ---- programs ----------------------------------------------------------------------------------------------------


def step(chance: random.Random, m: Machine, want: Processors, id: int, memory: bool) -> None:
    """One instruction or event, on the machine and by the specification. `memory`: outside xAPIC mode the page is."""
    kind = chance.choices(range(11), [10, 10, 8, 10, 6, 8, 8, 3, 6, 5, 3])[0]
    apic = want.all[id].apic
    msr = chance.choice([*[0x808, 0x80B, 0x80F, 0x828, 0x830, 0x832, 0x838, 0x83F] * 4, 0x6E0, *MSRS])
    vector = chance.randrange(10, 256)
    match kind:
        case 0:
            level = chance.randrange(16) << 4
            value = chance.choice([0, 0, 0x1FF, 0xFF, vector, level, 1 << 17 | vector, 0x100, 1 << 32])
            if msr == 0x6E0:
                value = chance.choice([0, m.apic.now + chance.randrange(1, 30)])
            if msr == 0x1B:
                value = 0xFEE0_0900
            assert tried(m.apic.wrmsr, msr, value) == tried(want.write_msr, id, msr, value), (hex(msr), hex(value))
        case 1:
            assert tried(m.apic.rdmsr, msr) == tried(want.read_msr, id, msr), hex(msr)
        case 2:
            value = 0xFEE0_0100 | chance.choice([0, 0x400, 0x800, 0x800, 0xC00, 0xC00])
            assert tried(m.apic.wrmsr, 0x1B, value) == tried(want.write_msr, id, 0x1B, value)
        case 3:
            offset = chance.choice([TPR, TPR, TPR, EOI, SVR, LDR, ICR, 0x320, 0x380, 0x3F0, 0x20])
            value = chance.choice([0, 0x1FF, 0x50, 0xF0, 0x4_0000 | vector, vector])
            if offset == ICR and not apic.enabled:
                return  # an interrupt to itself that the processor virtualizes takes no notice of SVR
            m.apic.write(offset, value)
            want.store(id, offset, value)
        case 4:
            offset = chance.choice([TPR, TPR, 0xA0, SVR, ICR, 0x280, 0x320, 0x380, 0x390, 0x200, 0x220, 0x100, 0x160])
            got, expected = m.apic.read(offset), want.load(id, offset)
            assert got == expected or (memory and not want.page_is_there(id)), hex(offset)
        case 5:
            value = chance.choice([*range(16), 16, 0xF0])
            assert tried(m.apic.write_cr8, value) == tried(want.write_cr8, id, value)
        case 6:
            assert m.apic.read_cr8() == apic.page[TPR] >> 4
        case 7:
            on = chance.random() < 0.7
            m.apic.set_interrupts(on)
            want.set_interrupts(id, on)
        case 8:
            by_level = chance.random() < 0.2
            m.apic.interrupt(vector, level=by_level)
            want.interrupt(id, vector, level=by_level)
        case 9:
            passed = chance.randrange(1, 12)
            m.apic.wait(passed)
            for _ in range(passed):
                want.access(id)
        case 10:
            value = vector | chance.choice([0, 1 << 18, 2 << 18, 3 << 18, 1 << 11]) | id << 32
            assert tried(m.apic.wrmsr, 0x830, value) == tried(want.write_msr, id, 0x830, value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("handler", ["eoi", "irql"])
def test_programs_that_change_modes(way: str, handler: str) -> None:
    """Values, refusals and interrupts of random programs, on a guest with instructions that can be patched."""
    id, count, patched = IDS[way], 0, 0
    for seed in range(PROGRAMS):
        chance = random.Random(f"{seed} {way}")
        length = chance.choice([0, 0, 3])
        m = Machine(Config(memory="64M", guest_handler=handler, handler_length=length, **WAYS[way]))
        want = processor(id, handler, length)
        m.apic.write(SVR, 0x1FF)
        for number in range(150):
            step(chance, m, want, id, WAYS[way]["tpr"] in ("flexpriority", "apicv") and way != "native")
            assert delivered(m) == want.all[id].delivered, (seed, number)
        count += len(m.apic.deliveries)
        patched += m.counters()["apic_patched"]
    assert count > PROGRAMS
    assert (patched > 0) == way.startswith("patch")


# ---- several vCPUs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trap", "patch", "flexpriority", "apicv", "apicv, shadow paging"])
def test_destinations_between_vcpus_in_mixed_modes(name: str) -> None:
    """Of a VM's vCPUs in xAPIC, x2APIC mode and disabled: who gets it is as the table says."""
    config = HOST_WAYS[name]
    vcpus = 16 if config["tpr"] == "patch" else 20
    for modes in (["x2APIC"] * vcpus, ["xAPIC", "x2APIC", "x2APIC", "disabled"] * 5, ["x2APIC", "xAPIC"] * 10):
        receivers = [
            Receiver(id, "xAPIC flat" if mode == "xAPIC" else mode, 1 << id % 8 if mode == "xAPIC" else 0)
            for id, mode in enumerate(modes[:vcpus])
        ]
        host = Host([(Config(memory="64M", **config), vcpus)], cpus=2)
        for each in receivers:
            setup: list[Event] = [(Op.APIC_WRITE, SVR << 32 | 0x1FF), (Op.APIC_WRITE, LDR << 32 | each.logical << 24)]
            if each.mode != "xAPIC flat":
                setup.append((Op.MSR_WRITE, 0x1B << 32 | TO_MODE[each.mode][0]))
            run(host, each.id, 0, setup)
        before = [0] * vcpus
        for sender in (0, 1):
            destinations = [0, 3, 17, 0xFF, 0x21, 0x80]
            if receivers[sender].mode == "x2APIC":
                destinations += [0xFFFF_FFFF, 0x1_0003, 0xFFFF, 0x1_FFFF, 0x1FF]
            for destination in destinations:
                for logical, shorthand in ((0, 0), (1, 0), (0, 1), (0, 2), (1, 3)):
                    icr = destination << 32 | shorthand << 18 | logical << 11 | 0x51
                    run(host, sender, sender, [(Op.IPI, icr)])
                    for id in range(vcpus):
                        host.place(id, id % 2)
                    after = [len(host.deliveries(id)) for id in range(vcpus)]
                    got = {id for id in range(vcpus) if after[id] > before[id]}
                    before = after
                    want = reached(receivers, sender, shorthand, destination, logical=bool(logical))
                    assert got == want, (modes[:4], sender, hex(icr))
