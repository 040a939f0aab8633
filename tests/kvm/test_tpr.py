"""Four ways to handle the TPR: random programs deliver the same interrupts at the same points in each."""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

import pytest

from fastmmu import Action, Config, ConfigError, Exit, GuestState, Machine, Policy, StateError, TraceError
from fastmmu import reference as ref
from fastmmu.cpu import tpr_patch_py as patch
from fastmmu.ops import Op
from fastmmu.reference.cpu import apic as rules
from tests.support.tpr_programs import Events, program, run
from tests.support.tpr_ways import WAYS

PROGRAMS = int(os.environ.get("FASTMMU_EXAMPLES", "30"))
TPR, EOI, SVR, ICR = 0x80, 0xB0, 0xF0, 0x300


def machine(handler: str, **config: Any) -> Machine:
    return Machine(Config(memory="256M", guest_handler=handler, **config))


def modelled(events: Events, handler: str) -> list[tuple[int, int]]:
    """The interrupts of a program on a processor without a VMM, by the specification: (vector, accesses before it)."""
    apic, delivered, accesses, enabled = ref.LocalApic(), [], 0, True

    def deliver() -> None:
        while enabled and (vector := apic.acknowledge()) is not None:
            delivered.append((vector, accesses))
            tpr = apic.page[TPR]
            if handler == "irql" and vector & 0xF0 > tpr:
                apic.write(TPR, vector & 0xF0)
            apic.write(EOI, 0)
            if handler == "irql" and vector & 0xF0 > tpr:
                apic.write(TPR, tpr)

    for op, addr in events:
        accesses += op <= 3
        if op == Op.APIC_WRITE:
            if ipi := apic.write(addr >> 32 & 0xFFFF, addr & 0xFFFF_FFFF):
                rules.route([apic], ipi)
        elif op == Op.DEVICE_INTERRUPT:
            apic.request(addr & 0xFF, level=bool(addr >> 8))
        elif op == Op.INTERRUPT_FLAG:
            enabled = bool(addr)
        deliver()
    return delivered


@pytest.mark.parametrize("handler", ["eoi", "irql"])
def test_all_ways_deliver_the_same_interrupts_at_the_same_points(handler: str) -> None:
    """None lost, none early, none late; and what the ways cost, in order."""
    totals = dict.fromkeys(WAYS, 0)
    delivered = 0
    for seed in range(PROGRAMS):
        events = program(random.Random(seed), 150)
        want = modelled(events, handler)
        delivered += len(want)
        for name, config in WAYS.items():
            m = machine(handler, **config)
            run(m, events)
            assert [tuple(each) for each in m.apic.deliveries] == want, (seed, name)
            exits = m.counters()["exits_by_reason"]
            totals[name] += sum(n for reason, n in exits.items() if reason not in ("cpuid", "external_interrupt"))
    assert delivered > 10 * PROGRAMS
    assert totals["native"] == 0
    assert totals["trap"] > totals["flexpriority"] > totals["apicv"]
    assert totals["trap"] > totals["patch"]
    print(f"{PROGRAMS} programs, {delivered} interrupts; exits {totals}")


def test_threshold_exits_are_deliveries_or_blocked() -> None:
    """By KVM's rule each exit injects, or an interrupt in service or RFLAGS.IF blocks; the slides' rule adds more."""
    exits = dict.fromkeys(("kvm", "slides"), 0)
    for seed in range(2 * PROGRAMS):
        events = program(random.Random(seed), 150)
        for rule in exits:
            m = machine("irql", mmu="ept", tpr="flexpriority", tpr_threshold=rule)
            run(m, events)
            counters = m.counters()
            exits[rule] += counters["exits_by_reason"].get("tpr_below_threshold", 0)
            explained = counters["apic_spurious_in_service"] + counters["apic_spurious_if"]
            if rule == "kvm":
                assert counters["apic_spurious"] == explained, seed
    assert exits["slides"] > exits["kvm"] > 0
    print(f"threshold exits {exits}")


def test_masked_by_if_there_is_one_threshold_exit_then_none() -> None:
    """README of the recordings; the slides' rule exits at each further step down."""
    found = {}
    for rule in ("kvm", "slides"):
        m = machine("eoi", mmu="ept", tpr="flexpriority", tpr_threshold=rule)
        events: Events = [(Op.APIC_WRITE, SVR << 32 | 0x1FF), (Op.INTERRUPT_FLAG, 0), (Op.APIC_WRITE, TPR << 32 | 0xF0)]
        events += [(Op.DEVICE_INTERRUPT, 0x51), *((Op.APIC_WRITE, TPR << 32 | each << 4) for each in range(14, -1, -1))]
        run(m, events)
        found[rule] = m.counters()["exits_by_reason"]["tpr_below_threshold"]
        assert m.apic.deliveries == []
        m.apic.set_interrupts(True)
        assert [each.vector for each in m.apic.deliveries] == [0x51]
    assert found == {"kvm": 1, "slides": 5}


# ---- through memory --------------------------------------------------------------------------------------------


def bare(policy: Policy | None = None, **config: Any) -> Machine:
    """A guest with 2 MB of memory mapped, and the APIC's page at C000_0000H; not at FEE0_0000H."""
    state = GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46)
    m = Machine(Config(memory="64M", **config), guest_kernel=False, state=state, policy=policy)
    tables = {0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x83, 0x2018: 0x4003, 0x4000: 0x5003, 0x5000: 0xFEE0_001B}
    for address, entry in tables.items():
        m.guest_memory.u64[address >> 3] = entry
    m.apic.address = 0xC000_0000
    return m


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_the_page_is_recognised_behind_translation(mmu: str) -> None:
    m = bare(mmu=mmu, tpr="flexpriority")
    m.apic.write(TPR, 0x50)
    m.apic.write(TPR, 0x60)
    assert (m.apic.read(TPR), m.apic.read_cr8(), m.apic.page[TPR]) == (0x60, 6, 0x60)
    assert set(m.counters()["exits_by_reason"]) == {{"ept": "ept_violation", "shadow": "exception_nmi"}[mmu]}
    m.apic.write(0x310, 0)
    assert m.counters()["exits_by_reason"]["apic_access"] == 1


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
@pytest.mark.parametrize("tpr", ["flexpriority", "apicv"])
def test_a_fetch_from_the_page_exits_with_its_offset(mmu: str, tpr: str) -> None:
    """Offset 80H too, where reads are virtualized; not from memory, nor in x2APIC mode, where the page is memory."""
    exits = []

    class Seen(Policy):
        def on_apic_access(self, machine: Machine, exit: Exit) -> Action:
            exits.append(exit.qualification)
            return Action.EMULATED

    m = bare(mmu=mmu, tpr=tpr, policy=Seen())
    virtual = ref.vapic.VirtualApic(virtualize_accesses=True)
    for offset in (0, TPR, 0xFFF):
        assert m.access(0xC000_0000 + offset, "x").gpa is None
        wanted = virtual.fetch(offset)
        assert isinstance(wanted, ref.vapic.Exit)
        assert exits.pop() == wanted.qualification
        assert m.access(offset, "x").gpa == offset
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)
    assert m.access(0xC000_0000 + TPR, "x").gpa == 0xFEE0_0000 + TPR
    assert exits == []


@pytest.mark.parametrize("mmu", ["ept", "shadow", "native"])
def test_a_page_fault_wins(mmu: str) -> None:
    m = bare(mmu=mmu, tpr="flexpriority")
    m.apic.address = 0xFEE0_0000
    with pytest.raises(StateError, match="#PF at 0xfee00080, error code 0x2"):
        m.apic.write(TPR, 0x50)
    assert "apic_access" not in m.counters()["exits_by_reason"]
    assert m.apic.page[TPR] == 0


def test_an_ept_violation_wins_and_comes_once() -> None:
    m = bare(mmu="ept", tpr="flexpriority")
    violations = []
    for offset in (0xB0, 0xB0, 0x20):
        m.apic.write(offset, 0)
        exits = m.counters()["exits_by_reason"]
        violations.append((exits["ept_violation"], exits["apic_access"]))
    assert [count for _, count in violations] == [1, 2, 3]
    assert violations[0][0] == violations[1][0] == violations[2][0]


def test_without_a_mapping_of_the_page_it_is_emulated() -> None:
    m = bare(mmu="ept", tpr="trap")
    m.apic.write(TPR, 0x50)
    assert m.apic.read(TPR) == 0x50
    assert m.counters()["apic_emulated"] == 2
    assert m.counters()["exits_by_reason"]["ept_violation"] >= 2


def test_writes_of_cr8_and_pages_are_one_register() -> None:
    for config in WAYS.values():
        m = bare(**{**config, "apic_id": 0})
        m.apic.write(TPR, 0x5A)
        assert m.apic.read_cr8() == 5
        m.apic.write_cr8(3)
        assert m.apic.read(TPR) == 0x30
        with pytest.raises(StateError, match="#GP"):
            m.apic.write_cr8(16)


def test_x2apic_mode() -> None:
    for config in WAYS.values():
        m = bare(**{**config, "apic_id": 0})
        m.apic.write(SVR, 0x1FF)
        m.apic.wrmsr(0x1B, 0xFEE0_0D00)
        m.apic.wrmsr(0x808, 0xF0)
        m.apic.interrupt(0x51)
        m.apic.wrmsr(0x83F, 0x61)
        assert m.apic.rdmsr(0x808) == 0xF0
        assert m.apic.deliveries == []
        m.apic.wrmsr(0x808, 0x50)
        assert [each.vector for each in m.apic.deliveries] == [0x61]
        m.apic.wrmsr(0x808, 0)
        assert [each.vector for each in m.apic.deliveries] == [0x61, 0x51]


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
@pytest.mark.parametrize("kvm", ["slides", "6.1"])
def test_in_a_premapped_run_only_the_apic_exits(mmu: str, kvm: str) -> None:
    events = program(random.Random(3), 200, flag=False)
    for tpr in ("trap", "patch", "flexpriority", "apicv"):
        m = Machine(Config(memory="256M", mmu=mmu, kvm=kvm, tpr=tpr, apic_access_page=True, premapped=True))
        run(m, events)
        assert [tuple(each) for each in m.apic.deliveries] == modelled(events, "eoi")
        counters = m.counters()
        pages = [
            counters["exits_by_reason"].get(name, 0) for name in ("ept_violation", "ept_misconfig", "exception_nmi")
        ]
        assert sum(pages) == (counters["apic_emulated"] if tpr in ("trap", "patch") else 0)


def test_level_triggered_interrupts_end_with_an_exit() -> None:
    m = bare(mmu="ept", tpr="apicv")
    m.apic.write(SVR, 0x1FF)
    m.apic.interrupt(0x51)
    assert "virtualized_eoi" not in m.counters()["exits_by_reason"]
    m.apic.interrupt(0x51, level=True)
    assert m.counters()["exits_by_reason"]["virtualized_eoi"] == 1
    assert len(m.apic.deliveries) == 2


# ---- patching ------------------------------------------------------------------------------------------------


def test_worked_examples_of_patching() -> None:
    """E11, E12."""
    rom = 0x800C_D100 - 32  # routine 1, set from EAX, is at 800C_D100
    assert patch.replace(bytes.fromhex("a38000feff"), 0x8040_1000, rom) == bytes.fromhex("e8fbc0ccff")
    rom = 0x800C_D180 - 64
    assert patch.replace(bytes.fromhex("890d8000feff"), 0x8040_1000, rom) == bytes.fromhex("51e87ac1ccff")
    record = patch.record(0x40, 0x5A, 0x61)
    assert record == 0x6100_5040
    assert patch.polls(record, 0x30)
    assert patch.polls(patch.record(0x40, 0x6A, 0x61), 0x30)  # by bytes: the VMM then finds the class in service
    assert not patch.polls(patch.record(0x40, 0x7A, 0x61), 0x30)
    assert not patch.polls(patch.record(0x40, None, None), 0)


def test_every_encoding() -> None:
    operand = bytes.fromhex("8000feff")
    known = {b"\xa1" + operand: 5, b"\xa3" + operand: 5, b"\xff\x35" + operand: 6}
    known |= {b"\xc7\x05" + operand + bytes.fromhex("41000000"): 10}
    for reg in range(8):
        for opcode in (0x89, 0x8B):
            code = bytes([opcode, 5 | reg << 3]) + operand
            if reg == 4:
                assert patch.replace(code, 0x8040_0000, 0x800C_D000) is None  # ESP
            else:
                known[code] = 6
    for code, length in known.items():
        new = patch.replace(code, 0x8040_0000, 0x800C_D000)
        assert new is not None
        assert len(new) == length
        called = patch.target(new, 0x8040_0000)
        assert called is not None
        assert 0 <= called - 0x800C_D000 < 12 * 32
    for code in ("a18400feff", "8b4580", "a28000feff", "ff158000feff", "c70d8000feff00000000", "90"):
        assert patch.replace(bytes.fromhex(code), 0x8040_0000, 0x800C_D000) is None


def test_only_each_site_exits_once() -> None:
    m = machine("eoi", mmu="ept", tpr="patch")
    writes: Events = [(Op.APIC_WRITE, site << 48 | TPR << 32 | 0x40) for site in range(8)]
    run(m, [(Op.APIC_WRITE, SVR << 32 | 0x1FF), *writes])
    counters = m.counters()
    assert (counters["apic_patched"], counters["apic_emulated"]) == (8, 9)
    before = counters["vm_exits"]
    run(m, writes * 50)
    counters = m.counters()
    assert (counters["apic_patched"], counters["vm_exits"]) == (8, before + counters["vm_exits"] - before)
    assert counters["apic_emulated"] == 9
    assert m.counters()["exits_by_reason"].get("vmcall", 0) == 0


def test_the_first_version_patches_one_vcpu() -> None:
    for cpu, patched in ((0, 1), (1, 0)):
        m = machine("eoi", mmu="ept", tpr="patch", tpr_patch="one-vcpu", apic_id=cpu)
        run(m, [(Op.APIC_WRITE, TPR << 32 | 0x40)] * 5)
        assert m.counters()["apic_patched"] == patched


# ---- what is refused -------------------------------------------------------------------------------------------


def test_configurations_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="at most 3G"):
        Config(tpr="trap")
    with pytest.raises(ConfigError, match="needs tpr_shadow"):
        Config(tpr="apicv", memory="1G", tpr_shadow=False)
    with pytest.raises(TraceError, match="no APIC"):
        run(Machine(Config(memory="64M")), [(Op.APIC_READ, TPR << 32)])
    with pytest.raises(TraceError, match="event 0"):
        run(machine("eoi", mmu="ept", tpr="apicv"), [(Op.CR8_WRITE, 16)])


def test_any_events_end_in_a_result_or_an_error() -> None:
    chance = random.Random(5)
    apic_ops = [op for op in Op if Op.APIC_READ <= op <= Op.TSC_DEADLINE]
    for seed in range(PROGRAMS):
        config = [*WAYS.values()][seed % len(WAYS)]
        m = machine(chance.choice(["eoi", "irql"]), **config)
        for _ in range(20):
            events = [(chance.choice(apic_ops), chance.getrandbits(chance.choice([8, 48, 64]))) for _ in range(10)]
            try:
                run(m, events)
            except (TraceError, StateError):
                continue
        assert m.counters()["apic_delivered"] == len(m.apic.deliveries)


def test_mov_cr8_and_mmio_agree_with_the_specification_in_every_state() -> None:
    """TPR before x request x TPR after: a delivery exactly where the specification has one, in every way."""
    for name, config in WAYS.items():
        if name in ("native", "patch", "patch, vCPU 3", "patch, one vCPU"):
            continue
        m = bare(**config)
        m.apic.write(SVR, 0x1FF)
        for before, wanted, after in itertools.product((0, 5, 15), range(1, 16, 2), range(0, 16, 3)):
            m.apic.write_cr8(15)
            n = len(m.apic.deliveries)
            m.apic.write_cr8(before)
            m.apic.interrupt(wanted << 4 | 1)
            assert len(m.apic.deliveries) - n == (wanted > before), (name, before, wanted)
            m.apic.write(TPR, after << 4)
            assert len(m.apic.deliveries) - n == (wanted > min(before, after)), (name, before, wanted, after)
            m.apic.write_cr8(0)
            assert len(m.apic.deliveries) - n == 1
