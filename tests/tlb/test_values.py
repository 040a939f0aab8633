"""What is cached of a walk: the smaller page, and rights under which an access passes iff the walk would let it."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest

from fastmmu.reference.tlb.tlb import value
from fastmmu.tlb.tlb import TLB

U, S, R, W, EW, X, D = (1 << i for i in range(7))


class Cpu(NamedTuple):
    """What an access is checked with that is not cached (tlb.md §1.1, R5)."""

    user: bool
    wp: bool
    smep: bool
    smap: bool  # SMAP=1 and AC=0


def need(cpu: Cpu, access: str) -> int:
    """The rights an access needs, as tlb/entries.pxd says."""
    if access == "x":
        return X | (U if cpu.user else S if cpu.smep else 0)
    bits = R | (U if cpu.user else S if cpu.smap else 0)
    if access == "w":
        bits |= EW | D | (W if cpu.user or cpu.wp else 0)
    return bits


def allowed(cpu: Cpu, access: str, us: bool, rw: bool, xd: bool, ept: int | None, mbec: bool) -> bool:
    """By the rules: paging.md §3, ept.md §3."""
    if cpu.user and not us:
        return False
    if not cpu.user and us and (cpu.smep if access == "x" else cpu.smap):
        return False
    if access == "w" and not rw and (cpu.user or cpu.wp):
        return False
    if access == "x" and xd:
        return False
    if ept is None:
        return True
    if access == "x":
        return bool(ept & (8 if mbec and us else 4))
    return bool(ept & (2 if access == "w" else 1))


@pytest.mark.parametrize("mbec", [False, True])
@pytest.mark.parametrize("under_ept", [False, True])
def test_an_access_passes_iff_the_rules_allow_it(under_ept: bool, mbec: bool) -> None:
    flag = (False, True)
    passed = denied = 0
    for us, rw, xd in itertools.product(flag, repeat=3):
        for ept in (1, 3, 4, 5, 7, 9, 11, 12, 13, 15) if under_ept else (None,):
            cached = TLB.value_of_walk(
                0x5000, ept_shift=12 if under_ept else 0, us=us, rw=rw, xd=xd, ept_rights=ept or 0, mbec=mbec
            )
            for cpu in itertools.starmap(Cpu, itertools.product(flag, repeat=4)):
                for access in "rwx":
                    passes = not need(cpu, access) & ~cached
                    assert passes == allowed(cpu, access, us, rw, xd, ept, mbec), (cpu, access, us, rw, xd, ept)
                    passed, denied = passed + passes, denied + (not passes)
    assert passed > 50
    assert denied > 50


def test_a_write_waits_for_both_dirty_flags() -> None:
    for dirty, ept_dirty in itertools.product((False, True), repeat=2):
        cached = TLB.value_of_walk(0x5000, ept_shift=12, dirty=dirty, ept_dirty=ept_dirty)
        assert bool(cached & D) == (dirty and ept_dirty)


@pytest.mark.parametrize(
    ("guest_shift", "ept_shift", "size", "page"),
    [
        (12, 0, "4k", "4k"), (21, 0, "2m", "2m"), (22, 0, "2m", "4m"), (30, 0, "1g", "1g"),
        (12, 12, "4k", "4k"), (12, 30, "4k", "4k"), (21, 12, "4k", "2m"), (21, 21, "2m", "2m"), (21, 30, "2m", "2m"),
        (22, 12, "4k", "4m"), (22, 21, "2m", "4m"), (30, 12, "4k", "1g"), (30, 21, "2m", "1g"), (30, 30, "1g", "1g"),
        (0, 12, "4k", "4k"), (0, 21, "2m", "2m"), (0, 30, "1g", "1g"),
    ],
)  # fmt: skip
def test_the_smaller_of_guest_and_ept_page(guest_shift: int, ept_shift: int, size: str, page: str) -> None:
    """R3; with paging off the EPT page is all there is."""
    pa = 0x12_3456_7ABC
    cached = TLB.value_of_walk(pa, guest_shift=guest_shift, ept_shift=ept_shift, global_page=True, key=9, memory_type=6)
    assert cached == value(pa, size, page=page, flags="urwexdg", key=9, memory_type=6)
