"""Invalidations cost what they remove, not what the TLB holds: the sets, entries and contexts that each looks at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastmmu.tlb.geometry import geometry
from fastmmu.tlb.tlb import TLB

ROOT, LA, GPA = 0x1000, 0x7F00_0000_0000, 0x4000_0000
NESTED = TLB.value(0x5000)

ONE_ADDRESS: dict[str, Callable[[TLB], int]] = {
    "INVLPG": lambda tlb: tlb.invlpg(LA, 1, 1),
    "#PF": lambda tlb: tlb.page_fault(LA, 1, 1),
    "INVPCID 0": lambda tlb: tlb.invpcid(0, 1, 1, LA),
    "INVVPID 0": lambda tlb: tlb.invvpid(0, 1, LA),
    "EPT violation": lambda tlb: tlb.ept_violation(GPA, ROOT, vpid=1, pcid=1, la=LA),
    "MOV to CR3": lambda tlb: tlb.mov_cr3(1, 1),
    "INVPCID 1": lambda tlb: tlb.invpcid(1, 1, 1),
}
"""Of an address, or a context."""
WHOLE: dict[str, Callable[[TLB], int]] = {
    "INVPCID 2": lambda tlb: tlb.invpcid(2, 1),
    "INVPCID 3": lambda tlb: tlb.invpcid(3, 1),
    "INVVPID 1": lambda tlb: tlb.invvpid(1, 1),
    "INVVPID 2": lambda tlb: tlb.invvpid(2),
    "INVVPID 3": lambda tlb: tlb.invvpid(3, 1),
    "INVEPT 1": lambda tlb: tlb.invept(1, ROOT),
    "INVEPT 2": lambda tlb: tlb.invept(2),
}
SHAPES = {
    "1,536": geometry("skylake", l1d="64/4", stlb="1536/12"),
    "98,304": geometry("skylake", l1d="64/4", stlb="98304/12"),
    "strict": geometry("strict"),
}


def filled(shape: str, pages: int, contexts: int) -> TLB:
    """So many pages in the context of the invalidation, and one page in each of the others."""
    tlb = TLB(SHAPES[shape])
    for number in range(contexts):
        tlb.switch(2 + number % 50, 2 + number // 50, ROOT)
        tlb.fill(LA, NESTED)
    tlb.switch(1, 1, ROOT)
    for page in range(pages):
        tlb.fill(LA + (page << 12), NESTED)
        tlb.gpm_fill(GPA + (page << 12), NESTED)
    for level in (2, 3):
        tlb.psc_fill(LA, level, 0x8000 | 7)
        tlb.epsc_fill(GPA, level, 0x9000 | 7)
    return tlb


def cost(tlb: TLB, invalidate: Callable[[TLB], int]) -> int:
    before = tlb._probes()
    assert invalidate(tlb) > 0
    return tlb._probes() - before


@pytest.mark.parametrize("name", [*ONE_ADDRESS, *WHOLE])
@pytest.mark.parametrize("shape", SHAPES)
def test_of_many_entries(shape: str, name: str) -> None:
    invalidate = {**ONE_ADDRESS, **WHOLE}[name]
    few, many = (cost(filled(shape, pages, 0), invalidate) for pages in (1, 60_000 if shape != "1,536" else 3_000))
    assert many <= few + 8  # others may be in the chain of a page
    assert few < 40


@pytest.mark.parametrize("name", ONE_ADDRESS)
@pytest.mark.parametrize("shape", ["1,536", "98,304"])
def test_of_many_contexts(shape: str, name: str) -> None:
    """Where sets have an end. (In the strict TLB the entries of one page in all contexts lie in one chain.)"""
    few, many = (cost(filled(shape, 100, contexts), ONE_ADDRESS[name]) for contexts in (1, 500))
    assert many <= few + 8


@pytest.mark.parametrize("name", ["MOV to CR3", "INVPCID 1"])
def test_of_many_contexts_in_the_strict_tlb(name: str) -> None:
    few, many = (cost(filled("strict", 100, contexts), ONE_ADDRESS[name]) for contexts in (1, 500))
    assert many <= few + 8
