"""Page tables of any depth, made for an experiment, and every address in them walked from memory.

Guest tables map random linear addresses to guest-physical pages; an EPT maps those; shadow tables map the same linear
addresses to host-physical pages. Each walk must arrive where the tables were made to lead.

A switched walk is that of agile paging (agile.md §2): shadow entries above, the last of which leads to the guest's own
table of a level, and from there on the guest's, each of them translated by the EPT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
import numpy as np

from fastmmu._walk import WalkResult, walk, walk_switched
from fastmmu.dtypes import StepKind
from fastmmu.errors import StudyError
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import GuestState

__all__ = ["FIGURES", "Walks", "walked"]

FIGURES = ("walks", "refs", "least", "most", "guest", "ept")
"""Walks; references of one: mean, least, most; of the mean those to guest (or shadow) tables, to the EPT."""

_BYTES = 1 << 34
_PRESENT, _LEAF_EPT, _LARGE = 0x67, 0x30, 0x80  # P, W, U, A, D; write-back; PS
_SWITCH = 1 << 52  # of a shadow entry: it leads to a table of the guest's
_LA57 = 1 << 12
_BITS = {4: 47, 5: 56}
_SHIFT = {"4k": 12, "2m": 21}
_LEAF = {"4k": 1, "2m": 2}


class Walks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tables and how many addresses are walked. ept: its levels, 0: none. switch: guest levels, the lowest, that are
    walked through the EPT, with shadow tables above them; None: no shadow tables."""

    levels: Literal[4, 5] = 4
    ept: Literal[0, 4, 5] = 0
    pages: Literal["4k", "2m"] = "4k"
    host_pages: Literal["4k", "2m"] = "4k"
    switch: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    addresses: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 200
    seed: int = 1

    def refused(self) -> str:
        """Why there can be no such walk; "": it can."""
        if self.switch is None:
            return ""
        if not self.ept:
            return "switch needs an EPT to switch to; give ept = 4 or 5"
        if self.switch > self.levels or self.pages != "4k":
            return f"switch = {self.switch} of {self.levels} levels, pages = {self.pages}: at most the levels, 4k pages"
        return ""


class _Tables:
    """A tree of tables of 512 entries. at: where in memory a table's page lies, by the address that entries name."""

    def __init__(
        self, memory: PhysicalMemory, levels: int, new: Callable[[], int], at: Callable[[int], int], flags: int
    ) -> None:
        self.memory, self.levels, self.new, self.at, self.flags = memory, levels, new, at, flags
        self.root = new()

    def map(self, address: int, leaf: int, level: int = 1) -> None:
        """address → the entry `leaf`, of this level."""
        table = self.root
        for above in range(self.levels, level, -1):
            place = self.at(table) + 8 * (address >> (3 + 9 * above) & 511)
            entry = self.memory.read64(place)
            if not entry:
                entry = self.new() | self.flags
                self.memory.write64(place, entry)
            table = entry & ~0xFFF
        self.memory.write64(self.at(table) + 8 * (address >> (3 + 9 * level) & 511), leaf)

    def table(self, address: int, level: int) -> int:
        """Host-physical address of the table of a level through which the address goes."""
        table = self.root
        for above in range(self.levels, level, -1):
            table = self.memory.read64(self.at(table) + 8 * (address >> (3 + 9 * above) & 511)) & ~0xFFF
        return self.at(table)


class _World:
    """Host memory with a guest's tables in it, the EPT, the shadow tables."""

    def __init__(self, said: Walks) -> None:
        self.said = said
        self.memory = PhysicalMemory(_BYTES)
        self.host, self.guest = 1 << 21, 1 << 32  # what is given next; apart, where there is no EPT
        self.backing: dict[int, int] = {}
        self.ept = _Tables(self.memory, said.ept or 4, self._host_page, lambda at: at, 7)
        self.tables = _Tables(self.memory, said.levels, self._guest_page, self.behind, _PRESENT)
        self.shadow = _Tables(self.memory, said.levels, self._host_page, lambda at: at, _PRESENT)
        cr4 = GuestState().cr4 | (_LA57 if said.levels == 5 else 0)
        self.state = GuestState(cr3=self.tables.root, cr4=cr4)
        self.native = GuestState(cr3=self.shadow.root, cr4=cr4)
        self.eptp = self.ept.root | said.ept - 1 << 3 | 6 if said.ept else None

    def _host_page(self, bits: int = 12) -> int:
        at = -(-self.host >> bits) << bits
        self.host = at + (1 << bits)
        return at

    def _guest_page(self, bits: int = 12) -> int:
        at = -(-self.guest >> bits) << bits
        self.guest = at + (1 << bits)
        return at

    def behind(self, gpa: int) -> int:
        """Host-physical address of a guest-physical one; the EPT maps it from then on. Without an EPT: itself."""
        if not self.said.ept:
            return gpa
        bits = _SHIFT[self.said.host_pages]
        page = gpa >> bits
        if page not in self.backing:
            self.backing[page] = self._host_page(bits)
            large = _LARGE if bits == 21 else 0
            self.ept.map(page << bits, self.backing[page] | large | _LEAF_EPT | 7, _LEAF[self.said.host_pages])
        return self.backing[page] | gpa & (1 << bits) - 1

    def put(self, address: int) -> int:
        """Map a linear address to a new page; where it leads."""
        pages = self.said.pages
        gpa = self._guest_page(_SHIFT[pages])
        self.tables.map(address, gpa | _PRESENT | (_LARGE if pages == "2m" else 0), _LEAF[pages])
        leads = self.behind(gpa | address & (1 << _SHIFT[pages]) - 1)
        switch = self.said.switch
        if switch == 0:
            self.shadow.map(address, leads & ~0xFFF | _PRESENT)
        elif switch is not None and switch < self.said.levels:
            self.shadow.map(address, self.tables.table(address, switch) | _PRESENT | _SWITCH, switch + 1)
        return leads


def walked(said: Walks) -> dict[str, float]:
    """What the walks come to, by the names of :data:`FIGURES`.

    :raises StudyError: a walk does not arrive where its tables lead.
    """
    world = _World(said)
    chance = np.random.default_rng(said.seed)
    addresses = {int(at) for at in chance.integers(0, 1 << _BITS[said.levels], said.addresses, np.uint64)}
    leads = {address: world.put(address) for address in addresses}
    found = np.array([_references(world, address, leads[address]) for address in sorted(addresses)])
    guest, ept = found.T
    refs = guest + ept
    return {
        "walks": len(refs), "refs": float(refs.mean()), "least": int(refs.min()), "most": int(refs.max()),
        "guest": float(guest.mean()), "ept": float(ept.mean()),
    }  # fmt: skip


def _references(world: _World, address: int, leads: int) -> tuple[int, int]:
    """References of a walk: to the guest's (or the shadow) tables, to the EPT."""
    said = world.said
    if said.switch is None:
        found = walk(world.memory, world.state, address, eptp=world.eptp)
    else:
        assert world.eptp is not None  # Walks.refused
        root = world.native if said.switch < said.levels else world.tables.table(address, said.levels)
        found, nested = walk_switched(world.memory, world.state, address, shadow=root, eptp=world.eptp)
        if nested != said.switch:
            raise StudyError(f"a walk of {found.la:#x} switches to {nested} levels of the guest's, not {said.switch}")
    kinds = np.asarray(_arriving(found, leads).steps["kind"]).tolist()
    return kinds.count(int(StepKind.GUEST)), kinds.count(int(StepKind.EPT))


def _arriving(found: WalkResult, leads: int) -> WalkResult:
    if found.fault or found.pa != leads:
        raise StudyError(f"a walk of {found.la:#x} ends at {found.pa:#x} ({found.fault.name}), not at {leads:#x}")
    return found
