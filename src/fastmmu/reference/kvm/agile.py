"""Executable specification of agile paging's policy: which of the guest's tables are walked nested (agile.md §4)."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ..paging import guest
from .map import table
from .sync import gpte_of, prefetch_entry, rights_of
from .tables import ALL, Leaf, Link, Role, Switch, TablePage
from .vm import Vm

__all__ = ["Rules", "Second", "Switching"]


class Rules(NamedTuple):
    """writes: so many in an interval move a table. interval: in walks, 0: none ends. back: "written", "all", "never":
    which go back as it ends. nested: a new root begins in nested mode."""

    writes: int
    interval: int
    back: str
    nested: bool


class Second(Vm):
    """The EPT beside the shadow tables of `shadow`, with its slots and its counters."""

    def __init__(self, shadow: Vm) -> None:
        rules = shadow.policy.rules
        policy = shadow.policy._replace(shadow=False, tdp=True, fast=rules.fast_faults)
        super().__init__(policy, shadow.state, shadow.memory, [])
        self.slots, self.count, self.stats = shadow.slots, shadow.count, shadow.stats
        self.shadow = shadow
        self.tables.beside = shadow.tables
        shadow.beside = self
        self.roots = [self.tables.make(0, Role(4, True, ALL))]

    def tracked(self, gfn: int) -> bool:
        return self.shadow.tracked(gfn)


class Switching:
    """Which tables are walked nested: `Tables.nested` of `vm`, gfn -> (level, interval in which it was moved)."""

    def __init__(self, vm: Vm, ept: Second, rules: Rules) -> None:
        self.vm, self.ept, self.rules = vm, ept, rules
        self.nested = vm.tables.nested
        self.now = 1
        self.wrote_in: dict[int, tuple[int, int]] = {}  # gfn -> interval, writes in it
        self.looked: set[tuple[int, int]] = set()  # gfn, level: tables below were looked at as this interval began
        self.known: set[int] = set()

    # ---- to nested mode -----------------------------------------------------------------------------------------

    def move(self, gfn: int, level: int = 1) -> None:
        if gfn in self.nested:
            return
        shadows = self.vm.tables.shadows[gfn]
        self.nested[gfn] = max([level, *(page.role.level for page in shadows)]), self.now
        self.vm.count["to_nested"] += 1
        self.leave_shadows(gfn)
        self.small_pages(gfn)
        self.vm.tables.lost = True

    def leave_shadows(self, gfn: int) -> None:
        while shadows := self.vm.tables.shadows[gfn]:  # one may take another with it
            page = next(iter(shadows))
            for parent, index in list(page.parents):
                self.vm.tables.put(parent, index, Switch(gfn, page.role.access))
            self.zap(page)

    def zap(self, page: TablePage) -> None:
        """With the table pages to which it alone led."""
        below = [entry.page for entry in page.entries.values() if isinstance(entry, Link)]
        for index in list(page.entries):
            self.vm.tables.put(page, index, None)
        for child in below:
            if not child.parents and (child.gfn, child.role) in self.vm.tables.pages:
                self.zap(child)
        self.vm.zap(page)

    def small_pages(self, gfn: int) -> None:
        """No large page is over the table: what is written of it is to be told from its neighbours."""
        for vm in (self.vm, self.ept):
            for page, index, _ in vm.tables.leaves_of(gfn, 2):
                vm.tables.put(page, index, None)

    def wrote(self, gfn: int, in_use: bool) -> None:
        """A store into a shadowed table was emulated. in_use: of the root, which keeps a shadow."""
        interval, n = self.wrote_in.get(gfn, (0, 0))
        n = n + 1 if interval == self.now else 1
        self.wrote_in[gfn] = self.now, n
        if n >= self.rules.writes and (in_use or self.vm.tables.shadows[gfn]):
            self.move(gfn, 4 if in_use else 1)

    def root(self, gfn: int) -> bool:
        """Is the root table walked nested?"""
        if self.rules.nested and gfn not in self.known and not self.vm.tables.shadows[gfn]:
            self.move(gfn, 4)
        self.known.add(gfn)
        return gfn in self.nested

    # ---- to shadow mode -----------------------------------------------------------------------------------------

    def was_written(self, gfn: int) -> bool:
        """By entries of both sets of tables; asked again it is about the time from now on. A large one keeps its D."""
        found = False
        for vm in (self.vm, self.ept):
            for page, index, leaf in vm.tables.leaves_of(gfn, 1, 2):
                found |= leaf.dirty and leaf.writable
                if leaf.dirty and leaf.level == 1:
                    page.entries[index] = replace(leaf, dirty=False)
                    vm.tables.lost = True
        return found

    def children(self, gfn: int, level: int) -> list[int]:
        """Tables to which used entries of a table lead."""
        found = []
        for index in range(512 if level > 1 else 0):
            gpte = self.vm.memory.read64((gfn << 12) + 8 * index)
            if self.leads_down(gpte, level):
                found.append((gpte & self.vm.state.frame) >> 12)
        return found

    def leads_down(self, gpte: int, level: int) -> bool:
        used = guest.PRESENT | guest.ACCESSED
        if gpte & used != used or gpte & guest.reserved_bits(self.vm.state, gpte, level):
            return False
        return not guest.is_leaf(self.vm.state, gpte, level) and self.vm.slot_of(gpte >> 12 & (1 << 40) - 1) is not None

    def keep_below(self, gfn: int, level: int) -> None:
        """Of a table that goes back: those below it that were written stay. A second look finds none."""
        if (gfn, level) in self.looked:
            return
        self.looked.add((gfn, level))
        for child in self.children(gfn, level):
            if child in self.nested:
                continue
            if not self.was_written(child):
                self.keep_below(child, level - 1)
            else:
                self.nested[child] = level - 1, self.now - 1
                self.leave_shadows(child)

    def ends(self, now: int, root: int) -> None:
        """An interval has ended; root: of the guest."""
        self.now, self.looked = now, set()
        if self.rules.back == "never" or not self.nested:
            return
        pages = self.vm.tables.pages.values()
        met = {entry.gfn for page in pages for entry in page.entries.values() if isinstance(entry, Switch)} | {root}
        there = sorted(self.nested.items(), key=lambda item: -item[1][0])
        for gfn, (level, since) in there:
            if gfn not in met:
                del self.nested[gfn]
            elif self.rules.back == "all" or (not self.was_written(gfn) and since < now - 1):
                self.vm.count["to_shadow"] += 1
                del self.nested[gfn]
                if self.rules.back == "written":
                    self.keep_below(gfn, level)
        for gfn in self.nested:
            self.small_pages(gfn)
        for page in list(self.vm.tables.pages.values()):
            for index, entry in list(page.entries.items()):
                if isinstance(entry, Switch) and entry.gfn not in self.nested and page.entries.get(index) == entry:
                    self.back_again(page, index)
        self.vm.tables.lost = True

    def back_again(self, page: TablePage, index: int) -> None:
        """The entry leads to a shadow again."""
        gpte = gpte_of(self.vm, page, index)
        if page.role.registers == self.vm.registers and self.leads_down(gpte, page.role.level):
            self.refill_child(page, index, gpte)
        else:  # of another role: the registers in force do not say what its shadow is
            self.vm.tables.put(page, index, None)

    def refill_child(self, page: TablePage, index: int, gpte: int) -> None:
        gfn = (gpte & self.vm.state.frame) >> 12
        access = page.role.access & rights_of(gpte)
        if gfn in self.nested:
            self.vm.tables.put(page, index, Switch(gfn, access))
            return
        child, new = table(self.vm, gfn, Role(page.role.level - 1, False, access, page.role.registers))
        self.vm.tables.put(page, index, Link(child))
        if new:
            self.refill(child)

    def refill(self, page: TablePage) -> None:
        """Entries that the guest used are set, as if the table had never left."""
        for index in range(512):
            if index in page.entries:
                continue
            if page.role.level == 1:
                if prefetch_entry(self.vm, page, index, log=False) and isinstance(leaf := page.entries[index], Leaf):
                    page.entries[index] = replace(leaf, accessed=True)
            elif self.leads_down(gpte := gpte_of(self.vm, page, index), page.role.level):
                self.refill_child(page, index, gpte)
