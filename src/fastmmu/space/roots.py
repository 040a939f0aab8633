"""Root tables found in memory: what CR3 and the EPT pointer may be, where nobody says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import Eptp, GuestState, Mode
from fastmmu.space.search import EPT, LONG, PAE, TWO, root_rows

__all__ = ["KINDS", "Root", "find_roots"]

KINDS = ("5-level", "4-level", "PAE", "32-bit", "EPT")
"""What can be looked for; EPT has 4 or 5 levels."""

_FORMS = {"5-level": LONG, "4-level": LONG, "PAE": PAE, "32-bit": TWO, "EPT": EPT}
_MODES = {"5-level": Mode.LEVEL_5, "4-level": Mode.LEVEL_4, "PAE": Mode.PAE, "32-bit": Mode.BITS_32}
_REGISTERS: dict[str, dict[str, Any]] = {
    "5-level": {"cr4": 0x10A0},
    "4-level": {"cr4": 0xA0},
    "PAE": {"cr4": 0xA0, "efer": 0x800},
    "32-bit": {"cr4": 0x90, "efer": 0},
}
_FRAME = np.uint64(0xF_FFFF_FFFF_F000)
_FLAGS = np.uint64(0x60)  # accessed and dirty, which come and go
_KERNEL = 256  # the entry of long mode with which the kernel's half begins
_TWO_MOST = 1 << 32
_MOST_TABLES = 1 << 18

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Root:
    """A table that may be the root of an address space.

    ``address``: where it lies. ``kind``: one of :data:`KINDS`. ``levels``: of its tables. ``pages``, ``tables``: that
    its entries lead to, as often as they do. ``inside``: pages in memory. ``user``: pages that user mode may reach.
    ``kernel_code``: pages that the kernel alone can execute, of EPT those that can be executed. ``malformed``: entries
    that no processor takes, or that lead to no table. ``shared``: how many of the roots found have the same kernel
    half, this one among them. ``pair``: the other root of a pair for page-table isolation (KPTI), the kernel's or the
    user's. ``self_map``: the entry that leads to the table itself, as Windows has one. ``pdptes``: of PAE paging, what
    a load of the PDPTE registers gets, without bit 5, which QEMU sets in memory. ``reason``: all that in words.

    Threads: immutable; share it.
    """

    address: int
    kind: str
    levels: int
    pages: int
    inside: int
    user: int
    kernel_code: int
    tables: int
    malformed: int
    shared: int
    pair: int | None
    self_map: int | None
    pdptes: tuple[int, ...] | None
    reason: str

    @property
    def mode(self) -> Mode | None:
        """Paging mode of the address space; None for an EPT."""
        return _MODES.get(self.kind)

    @property
    def eptp(self) -> Eptp | None:
        """EPT pointer, write-back and without accessed and dirty flags; None where it is no EPT."""
        return Eptp(self.address | (self.levels - 1) << 3 | 6) if self.kind == "EPT" else None

    @checked
    def state(self) -> GuestState:
        """Registers of a kernel that has this root.

        :raises ConfigError: it is that of an EPT.
        """
        if self.kind == "EPT":
            raise ConfigError(f"{self.address:#x} is the root of an EPT, which no CR3 points to; take .eptp")
        return GuestState(cr3=self.address, pdptes=self.pdptes, **_REGISTERS[self.kind])


@checked
def find_roots(
    memory: PhysicalMemory, *, kinds: Sequence[str] | None = None, threads: int = 1, maxphyaddr: int = 52
) -> list[Root]:
    """Candidates for CR3 and for EPT pointers, by a scan of all of memory; the likeliest first.

    A root is a table whose present entries are well-formed and lead to tables that are so, down to pages of memory,
    and that is not just a table of another root. First come those that map code which the kernel alone can execute, as
    any address space must that a processor runs on; among them those with the fewest malformed entries, that share
    their kernel half with the most others, and that map the most of memory. What is found is no proof: a table of a
    process that has ended looks as one in use.

    :param kinds: of :data:`KINDS`; None: all, but 32-bit paging only in memory of at most 4 GB, where it is likely.
    :param threads: how many scan; the result does not depend on it. :param maxphyaddr: physical-address width, 32..52.
    :raises ConfigError: a kind that is none.
    """
    wanted = _wanted(memory, kinds)
    forms = sum(1 << form for form in {_FORMS[kind] for kind in wanted})
    rows = root_rows(memory, forms, threads=threads, maxphyaddr=maxphyaddr)
    listed: list[Any] = rows.tolist()
    found = [_Candidate(row, memory) for row in listed]
    chosen = _chosen([each for each in found if each.likely()])
    below = _tables_below(memory, [each for each in chosen if each.kernel_code])
    chosen = [each for each in chosen if each.kind in wanted and (each.kernel_code or each.address not in below)]
    halves = Counter(each.half for each in chosen if each.half is not None)
    shared = {half: count for half, count in halves.items() if half is not None}
    by_address = {each.address: each for each in chosen if each.form == LONG}
    roots = [each.root(shared, by_address.get(each.address ^ 0x1000)) for each in chosen]
    return sorted(roots, key=_rank)


def _wanted(memory: PhysicalMemory, kinds: Sequence[str] | None) -> tuple[str, ...]:
    if kinds is None:
        return tuple(kind for kind in KINDS if kind != "32-bit" or memory.nbytes <= _TWO_MOST)
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"kinds: {kind!r} is none; choose from {', '.join(KINDS)}")
    return tuple(kinds)


def _rank(root: Root) -> tuple[bool, bool, int, int, int]:
    flawed = root.malformed * 100 > root.tables
    return root.kernel_code == 0, flawed, -root.shared, -root.inside, root.address


class _Candidate:
    """A row of `root_rows`, with the entries of its table."""

    def __init__(self, row: tuple[int, ...], memory: PhysicalMemory) -> None:
        self.address, self.form, self.levels, _, self.tables, self.malformed, self.pages = row[:7]
        self.inside, self.user, self.code, self.kernel_code, self.typed = row[7:12]
        self.kind = {LONG: f"{self.levels}-level", PAE: "PAE", TWO: "32-bit", EPT: "EPT"}[self.form]
        data = memory.read(self.address, 32 if self.form == PAE else 4096)
        self.words: Words = np.frombuffer(data, "<u4" if self.form == TWO else "<u8").astype(np.uint64)
        self.half = self._half()

    def _half(self) -> bytes | None:
        """What tells the kernel's half of it from others."""
        begin = {LONG: _KERNEL, PAE: 3, TWO: 768}.get(self.form)
        if begin is None or not self.words[begin:].any():
            return None
        return bytes([self.form, self.levels]) + (self.words[begin:] & ~_FLAGS).tobytes()

    @property
    def frames(self) -> set[int]:
        """Where its entries lead."""
        words = self.words[(self.words & np.uint64(7 if self.form == EPT else 1)) != 0]
        return set((words & _FRAME).tolist())

    def likely(self) -> bool:
        """Does it look as an operating system would have it?"""
        if self.malformed * 16 > self.tables:
            return False
        if self.form == EPT:
            return 2 * self.typed >= self.pages
        if self.form == TWO and (2 * self.inside < self.pages or 4 * self.typed > self.pages):
            return False
        return 2 * self.typed <= self.pages and (self.kernel_code > 0 or self.tables <= 4 * self.pages)

    def root(self, shared: dict[bytes, int], beside: _Candidate | None) -> Root:
        others = shared.get(self.half, 1) if self.half is not None else 1
        pair = beside.address if beside is not None and self.isolated_with(beside) else None
        mapped = [i for i, word in enumerate((self.words & _FRAME).tolist()) if word == self.address]
        self_map = mapped[0] if mapped and self.form == LONG and int(self.words[mapped[0]]) & 1 else None
        code = self.code if self.form == EPT else self.kernel_code
        return Root(
            address=self.address,
            kind=self.kind,
            levels=self.levels,
            pages=self.pages,
            inside=self.inside,
            user=self.user,
            kernel_code=code,
            tables=self.tables,
            malformed=self.malformed,
            shared=others,
            pair=pair,
            self_map=self_map,
            pdptes=tuple((self.words & ~np.uint64(0x20)).tolist()) if self.form == PAE else None,
            reason=self.reason(code, others, pair, self_map),
        )

    def isolated_with(self, other: _Candidate) -> bool:
        """The roots of page-table isolation lie side by side, and the user's half of both leads to the same tables."""
        lower, upper = sorted((self, other), key=lambda each: each.address)
        if (
            not (lower.kernel_code and upper.kernel_code)
            or lower.levels != upper.levels
            or lower.words[:_KERNEL].tolist() == [0] * _KERNEL
        ):
            return False
        return bool(np.array_equal(lower.words[:_KERNEL] & _FRAME, upper.words[:_KERNEL] & _FRAME))

    def reason(self, code: int, shared: int, pair: int | None, self_map: int | None) -> str:
        said = [f"{self.pages:,} pages in {self.tables:,} tables, {100 * self.inside / self.pages:.4g} % in memory"]
        if self.form == EPT:
            said.append(f"{100 * self.typed / self.pages:.4g} % write-back")
        else:
            said.append(f"{code:,} that only the kernel executes" if code else "no code of a kernel")
        if shared > 1:
            said.append(f"kernel half as in {shared - 1} other{'s' if shared > 2 else ''}")
        if pair is not None:
            said.append(f"KPTI: {'kernel' if not self.address & 0x1000 else 'user'} table, the other at {pair:x}")
        if self_map is not None:
            said.append(f"entry {self_map:x} leads to itself")
        if self.malformed:
            said.append(f"{self.malformed:,} malformed {'entry' if self.malformed == 1 else 'entries'}")
        return "; ".join(said)


def _chosen(found: list[_Candidate]) -> list[_Candidate]:
    """Without what is explained by others: a page is one kind of root, and a table of another root is none."""
    pages: dict[int, _Candidate] = {}
    for each in found:
        page = each.address & ~0xFFF
        other = pages.get(page)
        if other is None or _strength(each) > _strength(other):
            pages[page] = each
    kept = {id(each) for each in pages.values()}
    both = [each for each in found if each.form == PAE and (pages[each.address & ~0xFFF].form == PAE)]
    kept |= {id(each) for each in both}  # a page has room for many PDPTs
    leads: dict[tuple[int, int], int] = {}
    for each in found:
        if each.form in (LONG, EPT):
            for frame in each.frames - {each.address}:
                leads[each.form, frame] = max(leads.get((each.form, frame), 0), each.inside)
    return [each for each in found if id(each) in kept and leads.get((each.form, each.address), -1) < each.inside]


def _tables_below(memory: PhysicalMemory, roots: list[_Candidate]) -> set[int]:
    """Tables of long mode and EPT that these lead to, but for themselves."""
    seen: set[tuple[int, int, int]] = set()
    left = [(each.form, each.levels - 1, frame) for each in roots if each.form in (LONG, EPT) for frame in each.frames]
    while left and len(seen) < _MOST_TABLES:
        form, level, table = here = left.pop()
        if here in seen:
            continue
        seen.add(here)
        if level < 2:
            continue
        data = bytearray(4096)
        if memory.read_into(table, data) < 4096:
            continue
        words = np.frombuffer(data, "<u8")
        words = words[((words & np.uint64(7 if form == EPT else 1)) != 0) & (words & np.uint64(0x80) == 0)]
        left += [(form, level - 1, frame) for frame in set((words & _FRAME).tolist())]
    return {table for _, _, table in seen}


def _strength(each: _Candidate) -> tuple[Any, ...]:
    """Of two readings of a page: EPT where its pages are write-back, more levels, 8-byte entries."""
    return each.kernel_code > 0 or each.form == EPT, each.form == EPT, each.form != TWO, each.form == LONG, each.levels
