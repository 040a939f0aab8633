"""KVM's local APIC in Python and in the kernels: the same interrupts at the same points, the same counters."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from typing import Any

import pytest

from fastmmu import Action, Config, Exit, FastmmuError, GuestState, Host, Kvm, Machine, StateError
from fastmmu.exits import ExitReason
from fastmmu.kvm.lapic_port import Lapic
from fastmmu.kvm.policy.requests import Mode
from tests.support.apic_guest import PAGE, bare
from tests.support.apic_msrs import MSRS
from tests.support.hostile_values import OwnError, everything
from tests.support.ipi_programs import run, turns
from tests.support.tpr_programs import program
from tests.support.tpr_programs import run as run_machine
from tests.support.tpr_ways import HOST_WAYS, WAYS

PROGRAMS = int(os.environ.get("FASTMMU_EXAMPLES", "5"))
TPR, EOI, SVR = 0x80, 0xB0, 0xF0
OF_A_VMM = {name: fields for name, fields in WAYS.items() if name != "native"}


def state(m: Machine) -> list[Any]:
    return [m.counters(), m.apic.deliveries, m.apic.page, m.vmcs, m.vmm.stats(), m.tlb.counters()]


@pytest.mark.parametrize("way", OF_A_VMM)
@pytest.mark.parametrize("handler", ["eoi", "irql"])
def test_programs(way: str, handler: str) -> None:
    """TPR traffic, interrupts of devices, the timer's, to itself: state after state."""
    exits = 0
    for seed in range(PROGRAMS):
        events = program(random.Random(f"{seed} {way}"), 150)
        config = Config(memory="256M", guest_handler=handler, handler_length=seed % 3, **OF_A_VMM[way])
        kernel, python = Machine(config), Machine(config.replace(vmm="python"))
        for at in range(0, len(events), 30):
            for m in (kernel, python):
                run_machine(m, events[at : at + 30])
            assert state(python) == state(kernel), (seed, at)
        exits += python.counters()["vm_exits"]
    assert exits


@pytest.mark.parametrize("way", OF_A_VMM)
def test_every_register_in_every_mode(way: str) -> None:
    """MSRs, CR8, the page: what is read, what is refused."""
    fields = OF_A_VMM[way]
    kernel, python = bare(**fields), bare(vmm="python", **fields)

    def tried(m: Machine, name: str, *arguments: Any) -> Any:
        try:
            return getattr(m.apic, name)(*arguments)
        except StateError as error:
            return str(error)

    chance = random.Random(way)
    for mode in (0xFEE0_0900, 0xFEE0_0D00, 0xFEE0_0100, 0xFEE0_0900):
        calls: list[tuple[Any, ...]] = [("write", SVR, 0x1FF), ("wrmsr", 0x1B, mode)]
        for msr in MSRS:
            values = () if msr == 0x1B else (0, 0x51, 0x100, 1 << 17 | 0x61, 1 << 32)
            calls += [("rdmsr", msr), *(("wrmsr", msr, value) for value in values)]
        for offset in (*range(0, 0x400, 16), 0x81, 0x84, 0x3F4, 0xFFC):
            size = chance.choice([1, 2, 4, 8])
            calls += [("read", offset, size), ("write", offset, chance.randrange(1 << 20), size)]
        calls += [("write_cr8", chance.randrange(17)) for _ in range(9)] + [("read_cr8",)]
        for call in calls:
            assert tried(python, *call) == tried(kernel, *call), (hex(mode), call)
        assert state(python) == state(kernel)


@pytest.mark.parametrize("way", OF_A_VMM)
def test_instructions_on_the_page(way: str) -> None:
    """Loads, stores, read-modify-write and fetches of any size, on a page of the guest's and beside it."""
    chance = random.Random(way)
    kernel, python = bare(**OF_A_VMM[way]), bare(vmm="python", **OF_A_VMM[way])
    for number in range(200):
        la = PAGE + chance.choice([TPR, EOI, SVR, 0x20, 0x300, 0x380, chance.randrange(0x1000)])
        size, value = chance.choice([1, 2, 4, 4, 8]), chance.randrange(1 << 8)
        kind = chance.randrange(4)
        found = []
        for m in (kernel, python):
            if kind == 0:
                found.append(m.load(la, size))
            elif kind == 1:
                found.append(m.store(la, value, size))
            else:
                found.append(m.access(la, "rw" if kind == 2 else "x", size=size))
        assert found[0] == found[1], number
        assert state(python) == state(kernel), (number, kind, hex(la))


@pytest.mark.parametrize("way", HOST_WAYS)
@pytest.mark.parametrize("x2apic", [False, True, None])
def test_several_vcpus(way: str, x2apic: bool | None) -> None:
    """Interprocessor interrupts of every kind, kicks, notifications."""
    interrupts = 0
    for seed in range(PROGRAMS):
        chance = random.Random(f"{seed} {way} {x2apic}")
        vcpus, cpus = chance.randrange(2, 6), chance.randrange(1, 4)
        program = turns(chance, vcpus, cpus, 250, x2apic=x2apic)
        config = Config(memory="64M", handler_length=seed % 4, **HOST_WAYS[way])
        kernel, python = (Host([(config.replace(vmm=vmm), vcpus)], cpus=cpus) for vmm in ("kernel", "python"))
        for vcpu, cpu, events in program:
            for host in (kernel, python):
                run(host, vcpu, cpu, events)
            assert python.totals() == kernel.totals(), (seed, vcpu, cpu)
        for vcpu in range(vcpus):
            assert python.deliveries(vcpu) == kernel.deliveries(vcpu), (seed, vcpu)
            assert python.counters(vcpu) == kernel.counters(vcpu), (seed, vcpu)
        interrupts += python.totals()["interprocessor"]
    assert interrupts


def test_a_paging_structure_on_the_page() -> None:
    """A walk that meets the page is answered from its memory: nothing is present there."""
    errors = []
    for vmm in ("kernel", "python"):
        m = bare(mmu="ept", tpr="flexpriority", vmm=vmm)
        m.guest_memory.u64[0x2000 + 8 * 5 >> 3] = 0xFEE0_0003
        errors.append((m.load(5 << 30), m.counters()))
    assert errors[0] == errors[1]
    assert errors[1][1]["exits_by_reason"]["apic_access"] == 1


# ---- rules of one's own ------------------------------------------------------------------------------------------


def test_a_threshold_of_ones_own() -> None:
    """None ever: a waiting interrupt is delivered too late; KVM's own through the hook: nothing changes."""

    class Same(Kvm):
        def tpr_threshold(self, vcpu: Any, tpr: int, irr: int) -> int:
            return super().tpr_threshold(vcpu, tpr, irr)

    class Never(Kvm):
        def tpr_threshold(self, vcpu: Any, tpr: int, irr: int) -> int:
            return 0

    events = program(random.Random(1), 150)
    found = {}
    for vmm in ("kernel", Same, Never):
        m = Machine(Config(memory="256M", mmu="ept", tpr="flexpriority", vmm=vmm))
        run_machine(m, events)
        found[vmm] = m.counters(), m.apic.deliveries
    assert found[Same] == found["kernel"]
    assert "tpr_below_threshold" not in found[Never][0]["exits_by_reason"]
    assert found[Never][1] != found["kernel"][1]


class Asking(Kvm):
    """Does something at the next CPUID."""

    task: Any = None

    def default(self, vcpu: Any, exit: Exit) -> int:
        if exit.reason != ExitReason.CPUID:
            return super().default(vcpu, exit)
        task, Asking.task = Asking.task, None
        task(vcpu)
        return Action.EMULATED


def asked(m: Machine, task: Any) -> None:
    Asking.task = task
    m.exit_instruction(10)
    assert Asking.task is None


def asking(**fields: Any) -> Machine:
    m = Machine(
        Config(memory="64M", vmm=Asking, **fields),
        guest_kernel=False,
        state=GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46),
    )
    m.guest_memory.u64[0x1000 >> 3], m.guest_memory.u64[0x2000 >> 3], m.guest_memory.u64[0x3000 >> 3] = (
        0x2003,
        0x3003,
        0x83,
    )
    return m


def test_an_event_is_injected() -> None:
    m = asking(mmu="ept", tpr="flexpriority")
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)
    asked(m, lambda vcpu: vcpu.apic.inject(0x51))
    assert [each.vector for each in m.apic.deliveries] == [0x51]


def test_what_the_processor_is_told() -> None:
    """The threshold, RVI and the EOI-exit bitmap are what the processor goes by."""
    m = asking(mmu="ept", tpr="apicv")
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)
    seen: list[tuple[int, ...]] = []

    def told(vcpu: Any) -> None:
        assert vcpu.mode == Mode.OUTSIDE_GUEST_MODE
        apic = vcpu.apic
        apic.rvi, apic.svi, apic.eoi_exit_bitmap = 0x51, 0x30, (1, 2, 3, 4)
        seen.append((apic.rvi, apic.svi, *apic.eoi_exit_bitmap))
        apic.svi = 0

    asked(m, told)
    assert seen == [(0x51, 0x30, 1, 2, 3, 4)]


def test_the_registers_move_with_the_virtual_apic_page() -> None:
    m = asking(mmu="ept", tpr="flexpriority")
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)
    m.apic.wrmsr(0x808, 0x50)
    to = len(m.memory.u8) - 0x1000 & ~0xFFF

    def move(vcpu: Any) -> None:
        vcpu.apic.virtual_apic_address = to

    asked(m, move)
    assert m.vmcs["virtual_apic_address"] == to
    assert m.apic.rdmsr(0x808) == 0x50
    m.apic.wrmsr(0x808, 0x60)
    assert m.memory.u8[to + TPR] == 0x60


def test_nothing_that_is_said_inside_an_exit_breaks_the_machine() -> None:
    """Every call with every kind of value: it is done, or one of our errors says why not."""
    values = [value for _, value in everything()]
    names = [name for name in dir(Lapic) if not name.startswith("_")]
    done = refused = 0
    for way in ("trap", "flexpriority", "apicv"):

        def all_calls(vcpu: Any) -> None:
            nonlocal done, refused
            for name, value in itertools.product(names, values):
                for arguments in ((), (value,), (value, value), (3, value), (value, 3)):
                    try:
                        kept = getattr(vcpu.apic, name)
                        if callable(kept):
                            kept(*arguments)
                        else:
                            with contextlib.suppress(AttributeError):  # read-only
                                setattr(vcpu.apic, name, value)
                        done += 1
                    except (FastmmuError, TypeError, OwnError):
                        refused += 1

        m = asking(mmu="ept", tpr=way)
        try:
            asked(m, all_calls)
            m.apic.read(TPR)
        except FastmmuError:
            pass
    assert done > 300
    assert refused > 300
