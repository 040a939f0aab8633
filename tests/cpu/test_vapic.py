"""Virtualization of the local APIC: every access exhaustively, specification and kernel on random programs."""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

import numpy as np
import pytest

from fastmmu import reference as ref
from fastmmu.cpu.vapic_py import ApicOutcome, VirtualApic
from fastmmu.errors import StateError
from fastmmu.exits import ExitReason
from fastmmu.reference.cpu import vapic
from tests.support.apic_tables import SIZES, codes

EXAMPLES = int(os.environ.get("FASTMMU_EXAMPLES", "300"))


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
                    if not apic.rvi:
                        with pytest.raises(StateError, match="no virtual interrupt is requested"):
                            apic.deliver()
                        continue
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


@pytest.mark.parametrize("make", [ref.VirtualApic, VirtualApic], ids=["specification", "kernel"])
def test_nothing_is_delivered_where_nothing_is_requested(make: Any) -> None:
    apic = make(interrupt_delivery=True)
    before = bytes(apic.page)
    with pytest.raises(StateError, match="no virtual interrupt is requested"):
        apic.deliver()
    assert (bytes(apic.page), apic.svi, apic.vppr) == (before, 0, 0)
    apic = make(interrupt_delivery=True, rvi=0x51)
    assert (apic.deliver(), apic.rvi, apic.svi) == (0x51, 0, 0x51)
    with pytest.raises(StateError, match="no virtual interrupt is requested"):
        apic.deliver()


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


def test_threshold_exits_exactly_below() -> None:
    for threshold, tpr in itertools.product(range(16), range(256)):
        apic = VirtualApic(threshold=threshold, virtualize_accesses=True)
        outcome = apic.write(0x80, 4, tpr)
        below = tpr >> 4 < threshold
        assert (outcome.kind == "exit") == below
        assert not below or (outcome.reason, outcome.trap) == (ExitReason.TPR_BELOW_THRESHOLD, True)
        assert apic.entered() == below


def test_values_are_checked() -> None:
    for bad in (lambda: VirtualApic(threshold=16), lambda: VirtualApic(page=bytearray(8))):
        with pytest.raises(StateError):
            bad()
    with pytest.raises(StateError, match="3 bytes"):
        VirtualApic().read(0x80, 3)
    with pytest.raises(StateError):
        VirtualApic().take_posted(np.zeros(7, "<u8"))
