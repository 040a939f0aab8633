"""The local APIC and its virtualization: tables exhaustively, the specification and the kernels on random programs."""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

import numpy as np
import pytest

from fastmmu import reference as ref
from fastmmu.cpu import apic as kernel_apic
from fastmmu.cpu.apic import LocalApic
from fastmmu.cpu.vapic import ApicOutcome, VirtualApic
from fastmmu.cpu.vmentry import vm_entry
from fastmmu.errors import StateError
from fastmmu.exits import ExitReason
from fastmmu.reference import apic as rules
from fastmmu.reference import vapic, vmentry
from tests.support.apic_tables import SIZES, codes

EXAMPLES = int(os.environ.get("FASTMMU_EXAMPLES", "300"))


# ---- priorities ----------------------------------------------------------------------------------------------


@pytest.fixture(params=[ref.LocalApic, LocalApic], ids=["specification", "kernel"])
def make_apic(request: pytest.FixtureRequest) -> Any:
    def make(id: int = 0) -> Any:
        apic = request.param(id)
        apic.write(rules.SVR, 0x1FF)
        return apic

    return make


def test_priorities_over_every_class(make_apic: Any) -> None:
    """TPR class x ISR x IRR, each none or any class: what is delivered, and the PPR, as apic.md §1 defines them."""
    for tpr, served, wanted in itertools.product(range(16), [None, *range(1, 16)], [None, *range(1, 16)]):
        apic = make_apic()
        if served is not None:
            rules.put_bit(apic.page, rules.ISR, served * 16 + 5, 1)
        if wanted is not None:
            assert apic.request(wanted * 16 + 9)
        apic.write(rules.TPR, tpr * 16 + 7)
        top = max(tpr, served or 0)
        assert apic.ppr == apic.read(rules.PPR) == (tpr * 16 + 7 if top == tpr else top * 16)
        delivered = wanted is not None and wanted > top
        assert apic.deliverable() == (wanted * 16 + 9 if delivered and wanted is not None else None)
        assert apic.acknowledge() == (wanted * 16 + 9 if delivered and wanted is not None else None)


def test_every_pair_of_vectors_within_and_across_classes(make_apic: Any) -> None:
    """Of two requests the higher comes first; the lower follows once nothing of its class or above is in service."""
    for low, high in itertools.combinations(range(16, 256, 3), 2):
        apic = make_apic()
        assert apic.request(low)
        assert apic.request(high)
        assert apic.acknowledge() == high
        assert apic.deliverable() is None
        apic.write(rules.EOI, 0)
        assert apic.acknowledge() == low


def test_nested_service_ends_in_the_order_of_priority(make_apic: Any) -> None:
    apic = make_apic()
    for vector in (0x31, 0x51, 0x91):
        apic.request(vector, level=vector == 0x51)
        assert apic.acknowledge() == vector
    assert [apic.end_of_interrupt() for _ in range(4)] == [None, 0x51, None, None]
    assert apic.ppr == 0


def test_worked_examples(make_apic: Any) -> None:
    for tpr, served, ppr in ((0x35, 0x61, 0x60), (0x6A, 0x61, 0x6A), (0x35, None, 0x35)):  # E1
        apic = make_apic()
        if served:
            rules.put_bit(apic.page, rules.ISR, served, 1)
        apic.write(rules.TPR, tpr)
        assert apic.ppr == ppr
        assert apic.request(0x6F)
        assert apic.deliverable() == (None if served else 0x6F)
        assert apic.request(0x71)
        assert apic.deliverable() == 0x71


def test_what_is_not_accepted(make_apic: Any) -> None:
    apic = make_apic()
    assert not apic.request(15)
    assert apic.read(rules.ESR) == rules.RECEIVE_ILLEGAL
    apic.write(rules.SVR, 0xFF)
    assert not apic.request(0x51)


def test_interprocessor_interrupts_reach_whom_they_name(make_apic: Any) -> None:
    route = kernel_apic.route if isinstance(make_apic(), LocalApic) else rules.route

    def sent(sender: int, icr: int, destination: int = 0) -> list[int]:
        apics = [make_apic(id) for id in range(4)]
        for apic in apics:
            apic.write(rules.LDR, 1 << 24 + apic.id)
        apics[2].write(rules.TPR, 0x80)
        apics[sender].write(rules.ICR_HIGH, destination << 24)
        ipi = apics[sender].write(rules.ICR_LOW, icr)
        reached: list[int] = route(apics, ipi) if ipi else []
        assert all((apic.deliverable() == 0xA1) == (apic.id in reached) for apic in apics)
        return reached

    assert sent(1, 0x000A1, 3) == [3]
    assert sent(1, 0x000A1, 0xFF) == [0, 1, 2, 3]
    assert sent(1, 0x008A1, 0b0110) == [1, 2]
    assert sent(1, 0x009A1, 0b0110) == [1]  # lowest priority: 2 has TPR 80H
    assert sent(1, 0x400A1) == [1]
    assert sent(1, 0x800A1) == [0, 1, 2, 3]
    assert sent(1, 0xC00A1) == [0, 2, 3]
    assert sent(1, 0x4000F) == []  # an illegal vector
    assert sent(1, 0x404A1) == []  # NMI: not a vector


def test_the_timer_counts_down(make_apic: Any) -> None:
    apic = make_apic()
    apic.write(rules.DIVIDE, 0b0011)  # by 16
    apic.write(rules.LVT_TIMER, 1 << 17 | 0x41)
    apic.write(rules.INITIAL_COUNT, 10)
    assert apic.advance(80) == 0
    assert apic.read(rules.CURRENT_COUNT) == 5
    assert apic.advance(80) == 1
    assert apic.acknowledge() == 0x41
    assert apic.advance(1600) == 10
    apic.write(rules.LVT_TIMER, 0x1_0041)  # masked, one shot
    assert apic.advance(160) == 1
    assert apic.advance(10_000) == 0


def test_the_timer_by_a_deadline(make_apic: Any) -> None:
    """SDM: the MSR is 0 outside the mode and once it has fired; 0 disarms; a time that has passed fires at once."""
    apic = make_apic()
    assert not apic.set_deadline(50, 10)
    assert (apic.deadline, apic.advance(100)) == (0, 0)
    apic.write(rules.LVT_TIMER, 2 << 17 | 0x41)
    apic.write(rules.INITIAL_COUNT, 10)
    assert (apic.read(rules.INITIAL_COUNT), apic.advance(100)) == (0, 0)
    assert not apic.set_deadline(500, 400)
    assert (apic.deadline, apic.read(rules.CURRENT_COUNT), apic.advance(99), apic.deliverable()) == (500, 0, 0, None)
    assert (apic.advance(1), apic.deadline, apic.acknowledge(), apic.advance(1000)) == (1, 0, 0x41, 0)
    apic.write(rules.EOI, 0)
    apic.set_deadline(2000, 1000)
    apic.set_deadline(0, 1500)
    assert (apic.advance(1000), apic.deliverable()) == (0, None)
    assert apic.set_deadline(3000, 3000)
    assert apic.acknowledge() == 0x41
    apic.set_deadline(4000, 3000)
    apic.write(rules.LVT_TIMER, 0x42)  # to one shot: disarmed
    assert (apic.deadline, apic.advance(5000)) == (0, 0)


def test_a_new_divisor_keeps_the_count(make_apic: Any) -> None:
    apic = make_apic()
    apic.write(rules.LVT_TIMER, 0x41)
    apic.write(rules.DIVIDE, 0b0011)  # by 16
    apic.write(rules.INITIAL_COUNT, 10)
    apic.advance(32)
    apic.write(rules.DIVIDE, 0b1011)  # by 1
    assert apic.read(rules.CURRENT_COUNT) == 8
    assert (apic.advance(7), apic.advance(1)) == (0, 1)


def test_destinations_in_x2apic_mode(make_apic: Any) -> None:
    """Ids and clusters of 16, and the broadcast of 32 bits; an APIC in xAPIC mode beside them."""
    apics = [make_apic(id) for id in (0, 1, 17, 18, 200)]
    for apic in apics[:4]:
        apic.x2apic = True
    route = kernel_apic.route if isinstance(apics[0], LocalApic) else rules.route

    def sent(icr: int, destination: int) -> list[int]:
        ipi = apics[1].send(destination << 32 | icr)
        return route(apics, ipi)

    assert [apics[2].read(rules.ID), apics[2].read(rules.LDR), apics[4].read(rules.ID)] == [17, 0x10002, 200 << 24]
    assert sent(0x51, 18) == [18]
    assert sent(0x51, 0x10000 | 17) == []
    assert sent(0x51, 0xFFFF_FFFF) == [0, 1, 17, 18]
    assert sent(0x51, 0xFF) == [0, 1, 17, 18, 200]
    assert sent(0x851, 0x0001_0006) == [17, 18]
    assert sent(0x851, 0x0000_0006) == [1]
    assert sent(0x851, 0x0002_0006) == []
    assert sent(0xC0051, 0) == [0, 17, 18, 200]
    apics[2].x2apic = False
    assert (apics[2].read(rules.ID), apics[2].read(rules.LDR)) == (17 << 24, 0)


# ---- the two implementations on random programs ----------------------------------------------------------------


def plain(outcome: Any) -> ApicOutcome:
    """An outcome of the specification in the kernel's words."""
    match outcome:
        case vapic.Done(data):
            return ApicOutcome("done", data)
        case vapic.Exit(reason, qualification, trap):
            return ApicOutcome("exit", None, reason, qualification, trap)
        case vapic.Fault():
            return ApicOutcome("fault", vector=13)
        case vapic.NotVirtualized():
            return ApicOutcome("not virtualized")
    return outcome  # type: ignore[no-any-return]


def test_local_apics_do_the_same() -> None:
    random.seed(1)
    for _ in range(EXAMPLES):
        pair = ref.LocalApic(3), LocalApic(3)
        for _ in range(60):
            offset, value = 16 * random.randrange(72), random.choice([random.getrandbits(32), random.getrandbits(9)])
            op, timer = random.randrange(8), random.random() < 0.3
            if timer:
                offset = random.choice([rules.LVT_TIMER, rules.INITIAL_COUNT, rules.DIVIDE, rules.CURRENT_COUNT])
            if op == 0:
                assert pair[0].read(offset) == pair[1].read(offset)
            elif op == 6:
                tsc = random.getrandbits(9)
                assert pair[0].set_deadline(value, tsc) == pair[1].set_deadline(value, tsc)
            elif op == 7:
                wide = value | random.getrandbits(32) << 32
                sent = [apic.send(wide) for apic in pair]
                assert [tuple(vars(sent[0]).values())] == [sent[1]] if sent[0] else sent[1] is None
                for apic in pair if value & 3 == 0 else ():
                    apic.x2apic = not apic.x2apic
            elif op == 1:
                sent = [apic.write(offset, value) for apic in pair]
                assert [tuple(vars(sent[0]).values())] == [sent[1]] if sent[0] else sent[1] is None
            elif op == 2:
                assert pair[0].request(value & 255, level=value & 1 == 1) == pair[1].request(
                    value & 255, level=value & 1 == 1
                )
            elif op == 3:
                assert pair[0].acknowledge() == pair[1].acknowledge()
            elif op == 4:
                assert pair[0].end_of_interrupt() == pair[1].end_of_interrupt()
            else:
                assert pair[0].advance(value) == pair[1].advance(value)
            if random.randrange(8) == 0:
                for apic in pair:
                    apic.write(rules.SVR, 0x1FF)
            assert pair[0].page == pair[1].page
            assert pair[0].deliverable() == pair[1].deliverable()
            assert pair[0].ticks_left == pair[1].ticks_left
            assert pair[0].deadline == pair[1].deadline


def test_virtual_apics_do_the_same() -> None:
    random.seed(2)
    flags = ["tpr_shadow", "virtualize_accesses", "x2apic", "register_virtualization", "interrupt_delivery"]
    flags += ["interrupt_window_exiting", "cr8_load_exiting", "cr8_store_exiting"]
    for _ in range(EXAMPLES):
        fields: dict[str, Any] = {name: random.random() < (0.8 if name == "tpr_shadow" else 0.4) for name in flags}
        fields |= {"threshold": random.randrange(16), "eoi_exit_bitmap": random.getrandbits(256)}
        fields |= {"rvi": random.randrange(256), "svi": random.randrange(256)}
        page = bytearray(random.randbytes(4096))
        pair = ref.VirtualApic(**fields, page=bytearray(page)), VirtualApic(**fields, page=bytearray(page))
        for _ in range(25):
            offset = random.choice([0x80, 0xB0, 0x300, 16 * random.randrange(80), random.randrange(4096)])
            size, value = random.choice([1, 2, 4, 4, 8]), random.getrandbits(random.choice([4, 8, 32, 64]))
            msr = random.choice([0x808, 0x80B, 0x83F, 0x800 + random.randrange(256), 0x10])
            op = random.choice(
                ["read", "write", "modify", "fetch", "physical", "cr8", "msr", "deliver", "enter", "post"]
            )
            results: list[Any] = []
            for apic in pair:
                if op == "read":
                    results.append(apic.read(offset, size, event=bool(value & 1)))
                elif op == "write":
                    results.append(apic.write(offset, size, value, event=bool(value & 2)))
                elif op == "modify":
                    results.append(apic.modify(offset, size, value))
                elif op == "fetch":
                    results.append(apic.fetch(offset))
                elif op == "physical":
                    results.append(apic.physical(offset, event=bool(value & 1)))
                elif op == "cr8":
                    results.append(apic.write_cr8(value, 5) if value & 1 else apic.read_cr8(5))
                elif op == "msr":
                    results.append(apic.wrmsr(msr, value) if value & 1 else apic.rdmsr(msr))
                elif op == "deliver":
                    results.append(apic.deliver())
                elif op == "enter":
                    results.append(bool(apic.entered()))
                elif isinstance(apic, VirtualApic):
                    words = np.array([value, 0, value << 7 & 0xFFFF_FFFF_FFFF_FFFF, 0, 1, 0, 0, 0], "<u8")
                    apic.take_posted(words)
                    assert not words.any()
                else:
                    posted = vapic.PostedDescriptor(value | (value << 7 & 0xFFFF_FFFF_FFFF_FFFF) << 128, on=True)
                    apic.take_posted(posted)
                    assert (posted.requests, posted.on) == (0, False)
            if results:
                assert plain(results[0]) == results[1], op
            assert pair[0].page == pair[1].page
            state = [(apic.rvi, apic.svi, apic.vppr, apic.pending) for apic in pair]
            assert state[0] == state[1], op


def random_entry(chance: random.Random) -> dict[str, int]:
    def sparse(bits: int, weight: int) -> int:
        return sum(1 << chance.randrange(bits) for _ in range(chance.randrange(weight + 1))) & (1 << bits) - 1

    def page() -> int:
        return chance.getrandbits(32) << 12 | chance.choice([0] * 8 + [0x40, 1]) | chance.choice([0] * 8 + [1 << 50])

    fields = {
        "pin_based": chance.choice([0, 1, 1]) | sparse(8, 2),
        "primary": 1 << 31 | chance.choice([0, 1 << 21]) | sparse(32, 2),
    }
    fields |= {"secondary": sparse(28, 3), "tertiary": sparse(6, 1), "vm_exit": chance.choice([0, 1 << 15])}
    fields |= {
        "vm_entry": chance.choice([0, 1 << 9, 3 << 14, 1 << 9 | 3 << 14]),
        "cr3_target_count": chance.randrange(6),
    }
    fields |= {"vpid": chance.choice([0, 7]), "posted_vector": chance.choice([0x20, 0x1F2])}
    fields |= {"guest_interrupt_status": chance.getrandbits(16), "tpr_threshold": chance.choice([0, 3, 7, 0x13])}
    fields |= {"vm_functions": chance.choice([0, 1, 2]), "eptp": page() | chance.choice([0x1E, 0x5E, 0x26, 6])}
    names = ["virtual_apic_address", "apic_access_address", "posted_descriptor_address", "eptp_list_address"]
    return fields | {name: page() for name in [*names, "pml_address", "ve_information_address", "sppt_pointer"]}


def test_vm_entries_do_the_same() -> None:
    chance = random.Random(3)
    seen: set[str] = set()
    for _ in range(20 * EXAMPLES):
        control = random_entry(chance)
        if chance.random() < 0.5:  # a plain VMCS, so that guest state is reached
            control = {"eptp": 0x1E, "vm_entry": control["vm_entry"], "primary": 1 << 31 | chance.choice([0, 1 << 21])}
            control["secondary"] = chance.choice([2, 0x82, 3, 0x303])
            control["pin_based"] = 1
        cr4 = 0x2020 ^ chance.choice([0, 0, 0x20, 0x2000, 1 << 17])
        cr0 = chance.choice([0x80000021] * 6 + [0x80000020, 0x21, 0x20])
        guest = {"guest_cr0": cr0, "guest_cr4": cr4, "guest_cr3": chance.choice([0x1000, 1 << 51])}
        guest |= {"guest_efer": chance.choice([0, 0x500, 0x400]), "guest_rflags": chance.choice([2, 2, 0x20002])}
        guest |= {"guest_pat": chance.choice([0x0007040600070406, 0x0207040600070406])}
        pdpte = tuple(chance.choice([0, 0x1001, 0x1003, 1 << 50 | 1]) for _ in range(4))
        vtpr, width = chance.getrandbits(8), chance.choice([36, 46, 52])
        fields = vmentry.EntryFields(**control, **guest, guest_pdpte=pdpte)  # type: ignore[arg-type]
        caps = vmentry.Capabilities(maxphyaddr=width)
        memory = ref.SparseMemory()
        failed = vmentry.invalid_controls(fields, vtpr, caps)
        got = vm_entry(**control, **guest, guest_pdpte=pdpte, vtpr=vtpr, maxphyaddr=width)  # type: ignore[arg-type]
        want = vmentry.enter(fields, vtpr, memory, caps)
        match want:
            case vmentry.VmFail(error):
                assert (got.error, got.failed) == (error, tuple(failed))
            case vmentry.EntryExit(reason, qualification):
                state = vmentry.invalid_state(fields, memory, caps)
                assert (got.reason, got.qualification) == (reason, qualification)
                assert got.failed == ((state[0],) if state else ())
            case vmentry.Entered(vppr, pending):
                assert got == (0, (), None, 0, vppr if control["secondary"] >> 9 & 1 else got.vppr, pending)
        seen |= set(got.failed) | {type(want).__name__}
    assert {f"C{i}" for i in range(1, 19)} | {f"G{i}" for i in range(1, 7)} <= seen
    assert {"VmFail", "EntryExit", "Entered"} <= seen


# ---- tables ----------------------------------------------------------------------------------------------------

PAGE = random.Random(6).randbytes(4096)


def table(access: str, size: int, event: bool, controls: dict[str, bool]) -> list[ApicOutcome]:
    """What apic.md §4 says of each of the 4096 offsets."""
    found = []
    for offset, exit in enumerate(codes(access, size, event=event, **controls).tolist()):
        if exit >> 16 == 44:
            found.append(ApicOutcome("exit", None, ExitReason.APIC_ACCESS, exit & 0xFFFF, False))
        elif exit:
            found.append(ApicOutcome("exit", None, ExitReason.APIC_WRITE, exit & 0xFFFF, True))
        else:
            data = int.from_bytes(PAGE[offset : offset + size], "little") if access in ("r", "rw") else None
            found.append(ApicOutcome("done", data))
    return found


def ask(apic: Any, access: str, size: int, event: bool) -> list[Any]:
    """The same of an implementation. Writes store what is there already, so that nothing changes for the next."""
    if access == "r":
        return [apic.read(offset, size, event=event) for offset in range(4096)]
    if access in ("x", "physical", "physical event"):
        if access == "x":
            return [apic.fetch(offset) for offset in range(4096)]
        return [apic.physical(offset, event=access != "physical") for offset in range(4096)]
    outcomes = []
    for offset, value in enumerate(HELD[min(size, 8)]):
        if access == "w":
            outcomes.append(apic.write(offset, size, value, event=event))
        else:
            outcomes.append(apic.modify(offset, size, value))
        if offset & ~15 in REWRITTEN:
            apic.page[:] = PAGE
    return outcomes


HELD = {n: [int.from_bytes(PAGE[at : at + n], "little") for at in range(4096)] for n in (1, 2, 4, 8)}
REWRITTEN = {0x80, 0xA0, 0xB0, 0x300, 0x310}  # with what follows a write
OPERATIONS = [
    *((access, size, event) for access in ("r", "w") for size in SIZES for event in (False, True)),
    *(("rw", size, False) for size in SIZES),
    *((access, 1, False) for access in ("x", "physical", "physical event")),
]


@pytest.mark.parametrize("shadow", [False, True], ids=["", "shadow"])
@pytest.mark.parametrize("registers", [False, True], ids=["", "registers"])
@pytest.mark.parametrize("delivery", [False, True], ids=["", "delivery"])
def test_every_offset_width_and_configuration_against_the_tables(shadow: bool, registers: bool, delivery: bool) -> None:
    """apic.md §4, literally: every offset, operation and size, with and without x2APIC mode, both implementations."""
    controls = {"shadow": shadow, "registers": registers, "delivery": delivery}
    checked = 0
    for access, size, event in OPERATIONS:
        want = table(access, size, event, controls)
        for make, x2apic in ((VirtualApic, False), (VirtualApic, True), (ref.VirtualApic, False)):
            if event and (x2apic or make is ref.VirtualApic):
                continue  # random programs have it, and the recorded vectors
            options: Any = {"x2apic": x2apic, **_controls(controls)}
            on, off = (make(virtualize_accesses=each, page=bytearray(PAGE), **options) for each in (True, False))
            got = ask(on, access, size, event)
            if make is ref.VirtualApic:
                got = [plain(outcome) for outcome in got]
            assert got == want, (access, size, event, x2apic, make)
            checked += len(want)
            if make is VirtualApic and not event:
                assert set(ask(off, access, size, event)) == {ApicOutcome("not virtualized")}
                assert off.page == PAGE
                checked += len(want)
    print(f"{checked} operations")
    assert checked == (28 + 18 + 18 + 2 * 18) * 4096


def _controls(controls: dict[str, bool]) -> dict[str, bool]:
    return {
        "tpr_shadow": controls["shadow"],
        "register_virtualization": controls["registers"],
        "interrupt_delivery": controls["delivery"],
    }


def test_threshold_exits_exactly_below(make_apic: Any) -> None:
    for threshold, tpr in itertools.product(range(16), range(256)):
        apic = VirtualApic(threshold=threshold, virtualize_accesses=True)
        outcome = apic.write(0x80, 4, tpr)
        below = tpr >> 4 < threshold
        assert (outcome.kind == "exit") == below
        assert not below or (outcome.reason, outcome.trap) == (ExitReason.TPR_BELOW_THRESHOLD, True)
        assert apic.entered() == below


def test_values_are_checked() -> None:
    for bad in (lambda: VirtualApic(threshold=16), lambda: VirtualApic(page=bytearray(8)), lambda: LocalApic(256)):
        with pytest.raises(StateError):
            bad()
    with pytest.raises(StateError, match="3 bytes"):
        VirtualApic().read(0x80, 3)
    with pytest.raises(StateError, match="no control field 'tpr'"):
        vm_entry(tpr=1)
    with pytest.raises(StateError):
        vm_entry(vpid=1 << 16)
    with pytest.raises(StateError):
        VirtualApic().take_posted(np.zeros(7, "<u8"))
