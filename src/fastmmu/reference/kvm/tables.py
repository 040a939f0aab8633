"""Executable specification of KVM's tables: pages keyed by (gfn, role), entries, who maps what (kvm_policy.md §1).

Host frames have the numbers of the guest's: what a leaf maps is told by gfn. Sets stand where KVM has linked lists:
`mapped_by` for the reverse maps, `parents` for the parent entries (kvm_policy.md §2.3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["ALL", "Entry", "Leaf", "Link", "Mark", "Role", "Switch", "TablePage", "Tables", "U", "W", "X", "index_of"]

X, W, U = 1, 2, 4  # of role.access, and of the rights of a leaf; reading is always allowed
ALL = X | W | U


def index_of(address: int, level: int) -> int:
    """Index into the table of `level`."""
    return address >> (9 * level + 3) & 511


class Role(NamedTuple):
    """What else besides the gfn tells table pages apart. registers: of the guest, as its tables are read with them."""

    level: int
    direct: bool
    access: int
    registers: int = 0


@dataclass(frozen=True)
class Leaf:
    """A mapping of 4 KB (level 1) or 2 MB.

    may_write: a fault may give W back, for it is only logging or ageing that took it. tracked: its rights were set
    aside, so that the next access shows by a fault (kvm_policy.md §6).
    """

    gfn: int
    level: int
    access: int
    accessed: bool = False
    dirty: bool = False
    may_write: bool = False
    host_writable: bool = False
    tracked: bool = False

    @property
    def writable(self) -> bool:
        return bool(self.access & W)

    def allows(self, need: int) -> bool:
        """need: X, W, or 0 for a read."""
        return not self.tracked and self.access & need == need


@dataclass(frozen=True)
class Link:
    """An entry that points to a table page; all rights (kvm_policy.md §2.1)."""

    page: TablePage


@dataclass(frozen=True)
class Mark:
    """No memory is there (kvm_policy.md §4.4). generation: of the slots, when it was found so."""

    gfn: int
    generation: int


@dataclass(frozen=True)
class Switch:
    """Of agile paging: it leads to the guest's own table. access: of all of the guest's entries down to it."""

    gfn: int
    access: int


Entry = Leaf | Link | Mark | Switch
Place = tuple["TablePage", int]


@dataclass(eq=False)
class TablePage:
    """One table page of the VMM. gfn: the guest table that it shadows; of a direct page the first gfn mapped."""

    gfn: int
    role: Role
    number: int  # serial: the older is the smaller
    entries: dict[int, Entry] = field(default_factory=dict)
    parents: set[Place] = field(default_factory=set)
    unsync: bool = False  # the guest may have changed its table since
    writes: int = 0  # emulated in a row, without a fault through this page between
    split: bool = False  # small only because large pages are not executable


class Tables:
    """All table pages. Every change of an entry goes through :meth:`put`."""

    def __init__(self) -> None:
        self.pages: dict[tuple[int, Role], TablePage] = {}
        self.by_number: dict[int, TablePage] = {}
        self.mapped_by: defaultdict[tuple[int, int], set[Place]] = defaultdict(set)  # (level, first gfn)
        self.shadows: defaultdict[int, set[TablePage]] = defaultdict(set)  # gfn -> pages that shadow this guest table
        self.made = 0
        self.nested: dict[int, tuple[int, int]] = {}  # of agile paging (agile.md §4): gfn -> level, interval
        self.beside: Tables | None = None  # of an EPT of agile paging: the shadow tables
        self.lost = False  # an entry lost something since this was cleared: cached translations may be stale

    def put(self, page: TablePage, index: int, new: Entry | None) -> None:
        """The entry becomes `new`."""
        old = page.entries.pop(index, None)
        place = page, index
        if isinstance(old, Leaf):
            self.mapped_by[old.level, old.gfn].discard(place)
        elif isinstance(old, Link):
            old.page.parents.discard(place)
        if isinstance(new, Leaf):
            self.mapped_by[new.level, new.gfn].add(place)
        elif isinstance(new, Link):
            new.page.parents.add(place)
        if new is not None:
            page.entries[index] = new
        self.lost |= old is not None and old != new

    def make(self, gfn: int, role: Role) -> TablePage:
        """A new page, which is empty."""
        self.made += 1
        page = TablePage(gfn, role, self.made)
        self.pages[gfn, role] = self.by_number[page.number] = page
        if not role.direct:
            self.shadows[gfn].add(page)
        return page

    def remove(self, page: TablePage) -> None:
        """The page goes, with its entries and those that point to it."""
        for index in list(page.entries):
            self.put(page, index, None)
        for parent, index in list(page.parents):
            self.put(parent, index, None)
        del self.pages[page.gfn, page.role]
        del self.by_number[page.number]
        self.shadows[page.gfn].discard(page)

    def leaves_of(self, gfn: int, *levels: int) -> list[tuple[TablePage, int, Leaf]]:
        """Every leaf of these levels that maps the page."""
        found = []
        for level in levels:
            for page, index in self.mapped_by[level, gfn & -(1 << 9 * (level - 1))]:
                leaf = page.entries[index]
                assert isinstance(leaf, Leaf)
                found.append((page, index, leaf))
        return found

    def tables_near(self, gfn: int) -> bool:
        """Does the 2 MB region hold a guest table that is shadowed? (disallow_lpage of kvm_policy.md §2.2)"""
        of = self.beside or self
        shadowed = [gfn for gfn, pages in of.shadows.items() if pages]
        return any(table >> 9 == gfn >> 9 for table in (*shadowed, *of.nested))

    def path(self, root: TablePage, address: int) -> Iterator[tuple[TablePage, int, Entry | None]]:
        """The entries that a walk of `address` meets, down to the one at which it ends."""
        page = root
        while True:
            index = index_of(address, page.role.level)
            entry = page.entries.get(index)
            yield page, index, entry
            if not isinstance(entry, Link):
                return
            page = entry.page

    def below(self, page: TablePage) -> Iterator[TablePage]:
        """Every table page that can be reached from this one."""
        seen: set[TablePage] = set()
        waiting = [page]
        while waiting:
            for _, entry in sorted(waiting.pop().entries.items()):
                if isinstance(entry, Link) and entry.page not in seen:
                    seen.add(entry.page)
                    yield entry.page
                    if entry.page.role.level > 1:
                        waiting.append(entry.page)
