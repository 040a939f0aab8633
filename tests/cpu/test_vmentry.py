"""What VM entry checks: specification and kernel on random VMCSs."""

from __future__ import annotations

import os
import random

import pytest

from fastmmu import reference as ref
from fastmmu.cpu.vmentry_py import vm_entry
from fastmmu.errors import StateError
from fastmmu.reference.cpu import vmentry
from tests.support.vm_entries import random_entry

EXAMPLES = int(os.environ.get("FASTMMU_EXAMPLES", "300"))


def test_vm_entries_do_the_same() -> None:
    chance = random.Random(3)
    seen: set[str] = set()
    for _ in range(20 * EXAMPLES):
        control = random_entry(chance)
        if chance.random() < 0.5:  # a plain VMCS, so that guest state is reached
            control = {"eptp": 0x1E, "vm_entry": control["vm_entry"], "primary": 1 << 31 | chance.choice([0, 1 << 21])}
            control["secondary"] = chance.choice([2, 0x82, 3, 0x303])
            control["pin_based"] = 1
        cr4 = 0x2020 ^ chance.choice([0, 0, 0x20, 0x2000, 1 << 17, 1 << 23, 1 << 14])
        cr0 = chance.choice([0x80000021] * 3 + [0x80010021] * 3 + [0x80000020, 0x21, 0x20])
        guest = {"guest_cr0": cr0, "guest_cr4": cr4, "guest_cr3": chance.choice([0x1000, 1 << 51])}
        guest |= {
            "guest_efer": chance.choice([0, 0x500, 0x400, 0x1500]),
            "guest_rflags": chance.choice([2, 2, 0x20002]),
        }
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


@pytest.mark.parametrize("width", [36, 52])
def test_every_bit_of_the_guest_state(width: int) -> None:
    """SDM volume 3, 27.3.1.1: fixed bits, CET without WP, reserved bits of CR3 and EFER; one bit of a plain state."""
    lacking = {*range(25, 64), 14, 15, 19}  # of CR4
    wrong = {
        "guest_cr0": {0: "G1", 5: "G1", 31: "G1"} | dict.fromkeys(range(32, 64), "G1"),
        "guest_cr3": dict.fromkeys(range(width, 64), "G3"),
        "guest_cr4": {5: "G2", 13: "G1", 23: "G1"} | dict.fromkeys(lacking, "G1"),
        "guest_efer": dict.fromkeys({*range(64)} - {0, 11}, "G4"),
    }
    plain = {"guest_cr0": 0x8000_0021, "guest_cr3": 0x1000, "guest_cr4": 0x2020, "guest_efer": 0x500}
    control = {"primary": 1 << 31, "secondary": 2, "eptp": 0x1E, "vm_entry": 1 << 9 | 1 << 15}
    for register, checks in wrong.items():
        for bit in range(64):
            for wp in (0, 1 << 16):
                guest = {**plain, "guest_cr0": plain["guest_cr0"] | wp}
                guest[register] ^= 1 << bit
                check = checks.get(bit)
                if (register, bit) == ("guest_cr4", 23) and wp:
                    check = None
                got = vm_entry(**control, **guest, maxphyaddr=width)  # type: ignore[arg-type]
                assert got.failed == (() if check is None else (check,)), (register, bit, wp)
                fields = vmentry.EntryFields(**control, **guest)
                failed = vmentry.invalid_state(fields, caps=vmentry.Capabilities(maxphyaddr=width))
                assert (failed[0] if failed else None) == check, (register, bit, wp)


def test_values_are_checked() -> None:
    with pytest.raises(StateError, match="no control field 'tpr'"):
        vm_entry(tpr=1)
    with pytest.raises(StateError):
        vm_entry(vpid=1 << 16)
