"""Every mapping of an address space, in address order: the obvious recursion over the tables.

A page is listed if the walk of its address reaches a leaf: all entries present and well-formed, all tables inside
memory and, under EPT, readable by the page walker (readable and writable where EPT A/D flags are in use), and the page
itself present and well-formed in EPT. Rights are reported, not judged: an execute-only page is listed.
A page is never merged with its neighbour; its size is the smaller of guest page and EPT page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import ept as second
from . import guest, npt
from .ept import Ept, GpaReference
from .memory import Memory, holds
from .memtype import ept_access_type, guest_access_type, npt_access_type
from .npt import Npt
from .outcome import GpaMapped
from .state import Mode, State, bits

__all__ = ["Mapping", "mappings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One page. `leaf` is the guest leaf entry (0 with paging off), `guest_size` the size of its page (0 likewise)."""

    va: int
    pa: int
    size: int
    guest_size: int
    us: int
    rw: int
    xd: int
    leaf: int
    ept_rights: int  # R=1 W=2 X=4 XU=8; 0 without EPT
    ept_leaf: int  # EPT leaf entry; 0 without EPT
    memory_type: int


@dataclass(frozen=True)
class _Page:
    """A guest page before EPT has its say."""

    va: int
    gpa: int
    shift: int
    rights: tuple[int, int, int]
    leaf: int | None
    level: int


def _table_hpa(mem: Memory, ept: Ept | Npt | None, gpa: int) -> int | None:
    """Where a guest table page lies in memory, if the page walker may read it there."""
    if ept is None:
        return gpa
    why = GpaReference(rd=True, wr=ept.ad)
    if isinstance(ept, Npt):
        found = npt.translate_gpa(mem, ept, gpa, why, write=False)
    else:
        found = second.translate_gpa(mem, ept.quiet, gpa, why, write=False)
    return found.hpa if isinstance(found, GpaMapped) else None


def _read(mem: Memory, hpa: int, size: int) -> int | None:
    if not holds(mem, hpa & ~7):
        return None
    qword = mem.read64(hpa & ~7)
    return qword if size == 8 else qword >> (8 * (hpa & 4)) & 0xFFFF_FFFF


def _sign_extended(state: State, la: int) -> int:
    if not state.lma:
        return la
    top = 56 if state.la57 else 47
    return la | bits(63, top) if la >> top & 1 else la


def _guest_pages(
    mem: Memory,
    state: State,
    ept: Ept | Npt | None,
    table: int,
    level: int,
    la: int,
    rights: tuple[int, int, int],
    span: range,
) -> Iterator[_Page]:
    """Pages of one table; `la` is the address (not yet sign-extended) that its entry 0 covers."""
    size, shift = guest.entry_size(state), guest.page_shift(state, level)
    hpa = _table_hpa(mem, ept, table)
    if hpa is None:
        return
    for index in range(1024 if size == 4 else 512):
        va = _sign_extended(state, la | index << shift)
        if va + (1 << shift) <= span.start or va >= span.stop:
            continue
        entry = _read(mem, hpa + size * index, size)
        if entry is None or not entry & guest.PRESENT or entry & guest.reserved_bits(state, entry, level):
            continue
        us, rw, xd = rights
        here = (us & entry >> 2 & 1, rw & entry >> 1 & 1, xd | entry >> 63 & int(state.xd_enabled))
        if guest.is_leaf(state, entry, level):
            yield _Page(va, guest.frame_of(state, entry, level), shift, here, entry, level)
        else:
            below = guest.table_of(state, entry)
            yield from _guest_pages(mem, state, ept, below, level - 1, la | index << shift, here, span)


def _pdptes(mem: Memory, state: State, ept: Ept | Npt | None) -> Iterator[int]:
    """The registers; AMD's nested paging leaves the entries in memory, each for itself in order or not."""
    if not isinstance(ept, Npt):
        yield from state.pdpte
        return
    for index in range(4):
        hpa = _table_hpa(mem, ept, (state.cr3 & bits(31, 5)) + 8 * index)
        entry = None if hpa is None else _read(mem, hpa, 8)
        yield 0 if entry is None or entry & state.pdpte_reserved else entry


def _pages(mem: Memory, state: State, ept: Ept | Npt | None, span: range) -> Iterator[_Page]:
    if state.mode is Mode.NONE:
        yield _Page(0, 0, 32, (1, 1, 0), None, 0)
    elif state.mode is Mode.PAE:
        for index, register in enumerate(_pdptes(mem, state, ept)):
            if register & guest.PRESENT:
                yield from _guest_pages(mem, state, ept, register & state.frame, 2, index << 30, (1, 1, 0), span)
    else:
        yield from _guest_pages(mem, state, ept, guest.root_table(state), state.levels, 0, (1, 1, 0), span)


def _ept_pages(
    mem: Memory, ept: Ept | Npt, table: int, level: int, base: int, rights: int, first: int, last: int
) -> Iterator[tuple[int, int, int, int]]:
    """(gpa, shift, rights, leaf) of every EPT page that meets guest-physical first..last."""
    shift = 12 + 9 * (level - 1)
    stage: Any = npt if isinstance(ept, Npt) else second
    for index in range(512):
        gpa = base | index << shift
        if gpa + (1 << shift) <= first or gpa > last:
            continue
        entry = _read(mem, table + 8 * index, 8)
        if entry is None or not stage.present(ept, entry) or stage.misconfigured(ept, entry, level):
            continue
        here = rights & stage.rights_of(ept, entry)
        if stage.is_leaf(entry, level):
            yield gpa, shift, here, entry
        else:
            yield from _ept_pages(mem, ept, entry & ept.frame, level - 1, gpa, here, first, last)


def _fragments(mem: Memory, state: State, ept: Ept | Npt, page: _Page) -> Iterator[Mapping]:
    """A guest page, cut where EPT cuts it."""
    last = page.gpa + (1 << page.shift) - 1
    if ept.levels == 4:
        last = min(last, bits(47, 0))
    everything = second.READ | second.WRITE | second.EXECUTE | (second.EXECUTE_USER if ept.mbec else 0)
    for gpa, shift, rights, entry in _ept_pages(mem, ept, ept.root, ept.levels, 0, everything, page.gpa, last):
        start = max(gpa, page.gpa)
        hpa = entry & ept.frame & ~bits(shift - 1, 0) | start - gpa
        level = (shift - 3) // 9
        index = None if page.leaf is None else guest.pat_index(page.leaf, page.level)
        if isinstance(ept, Npt):
            leaf: second.GpaLeaf = npt.NptLeaf(hpa, level, rights, entry, 0, ept.pat)
            kind = npt_access_type(state.pat, leaf.mt, index=index, cd=state.cd)
        else:
            leaf = second.GpaLeaf(hpa, level, rights, entry, 0)
            kind = ept_access_type(state.pat, leaf.mt, leaf.ipat, index=index, cd=state.cd)
        yield _mapping(
            page,
            page.va + start - page.gpa,
            leaf.hpa,
            1 << min(shift, page.shift),
            leaf.packed_rights,
            entry,
            int(kind),
        )


def _mapping(page: _Page, va: int, pa: int, size: int, ept_rights: int, ept_leaf: int, memory_type: int) -> Mapping:
    us, rw, xd = page.rights
    return Mapping(
        va=va,
        pa=pa,
        size=size,
        guest_size=0 if page.leaf is None else 1 << page.shift,
        us=us,
        rw=rw,
        xd=xd,
        leaf=page.leaf or 0,
        ept_rights=ept_rights,
        ept_leaf=ept_leaf,
        memory_type=memory_type,
    )


def mappings(
    mem: Memory, state: State, *, ept: Ept | Npt | None = None, start: int = 0, stop: int = 1 << 64
) -> Iterator[Mapping]:
    """Mappings that meet [start, stop), in the order of their (sign-extended, unsigned) addresses.

    A generator: tables that point at themselves give an enormous space one page at a time; take what you need.
    With paging off there is one 4 GiB page. The memory type without EPT is that of the page's first byte.
    """
    span = range(start, stop)
    for page in _pages(mem, state, ept, span):
        if ept is not None:
            for fragment in _fragments(mem, state, ept, page):
                if fragment.va + fragment.size > start and fragment.va < stop:
                    yield fragment
        elif page.va + (1 << page.shift) > start and page.va < stop:
            index = None if page.leaf is None else guest.pat_index(page.leaf, page.level)
            kind = guest_access_type(state.pat, state.mtrrs, page.gpa, index=index, cd=state.cd)
            yield _mapping(page, page.va, page.gpa, 1 << page.shift, 0, 0, int(kind))
