"""Executable specification of KVM: what a virtual machine consists of, and what the host has behind its memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ...exits import ExitReason
from ...kvm_versions import KvmRules
from ..paging.memory import SparseMemory
from ..paging.state import State
from .stats import Stats
from .tables import TablePage, Tables, W

__all__ = ["Exited", "Log", "Policy", "Slot", "Vm"]


class Policy(NamedTuple):
    """What this KVM does of its own choice, by generation and module parameters (kvm_policy.md)."""

    shadow: bool  # shadow paging, else EPT
    rules: KvmRules  # of its version, of which the fields below have what parameters may turn off
    ad: bool = True  # EPT A/D flags
    unsync: bool = False  # a guest's page table may go out of sync until the next flush point
    flooding: bool = False  # a table that is written again and again without being used is forgotten
    prefetch: bool = False
    fast: bool = False  # fast page faults
    mmio_caching: bool = False
    tdp: bool = False  # EPT by the TDP MMU
    eager_split: bool = True
    nx_huge: bool = False
    pml: bool = False
    limit: int = 0  # table pages that there may be; 0: no limit


@dataclass
class Log:
    """A dirty log. manual: it is cleared by a call of its own; initial: it began with every page set."""

    manual: bool = False
    initial: bool = False
    dirty: set[int] = field(default_factory=set)  # pages of the slot


@dataclass
class Slot:
    """Memory of the guest. host: "4k" or "2m", and touched, or "untouched": given page by page (kvm_policy.md §6).

    state: of an untouched slot, gfn -> "zero", "present", "clean" (read back from disk, not written since), "swapped".
    """

    base: int  # gfn
    pages: int
    readonly: bool = False
    emulated: bool = False  # never mapped: every access is emulated (kvm_policy.md §14)
    host: str = "4k"
    state: dict[int, str] = field(
        default_factory=dict
    )  # of an untouched slot: gfn -> "zero", "present", "clean", "swapped"
    log: Log | None = None

    def holds(self, gfn: int) -> bool:
        return self.base <= gfn < self.base + self.pages

    def page(self, gfn: int) -> str:
        """What the host has there."""
        return "present" if self.host != "untouched" else self.state.get(gfn, "absent")

    def wrote(self, gfn: int) -> None:
        if self.log:
            self.log.dirty.add(gfn - self.base)

    def backs_large(self, gfn: int) -> bool:
        """One page of the host's is behind the whole 2 MB, all in the slot (kvm_policy.md §4.3)."""
        first = gfn & ~511
        return self.host == "2m" and self.holds(first) and self.holds(first + 511)

    def pinned(self, gfn: int) -> bool:
        """Can the page be had for writing without waiting for the host?"""
        return self.holds(gfn) and not self.readonly and self.page(gfn) == "present"


@dataclass
class Exited:
    """A VM exit, and what its fault needed the VMM for (`fastmmu.exits.FaultClass`)."""

    reason: ExitReason
    qualification: int
    error_code: int
    fault_class: str = "none"


class Vm:
    """Slots, tables, the guest's memory and registers, and what was counted."""

    def __init__(self, policy: Policy, state: State, memory: SparseMemory, slots: list[Slot]) -> None:
        self.policy = policy
        self.state = state  # the guest's registers; privilege is that of the access
        self.memory = memory
        self.slots: list[Slot | None] = list(slots)
        self.generation = 0
        self.last_retry = 0  # guest-physical address of a load that runs once more before it is emulated
        self.tables = Tables()
        self.beside: Vm | None = None  # of agile paging: what is for the EPT
        self.roots: list[TablePage | None] = [None] * (4 if policy.rules.previous_roots and policy.shadow else 1)
        self.count: Counter[str] = Counter()
        self.exits: Counter[ExitReason] = Counter()
        self.log: list[Exited] = []
        self.stats = Stats()

    @property
    def root(self) -> TablePage:
        assert self.roots[0] is not None
        return self.roots[0]

    @property
    def registers(self) -> int:
        """Registers that make the same guest table mean something else (kvm_policy.md §1)."""
        s = self.state
        return s.nxe | s.wp << 1 | (s.smep and not s.wp) << 2 | (s.smap and not s.wp) << 3

    def slot_of(self, gfn: int) -> Slot | None:
        return next((slot for slot in self.slots if slot and slot.holds(gfn)), None)

    def wrote(self, gfn: int) -> None:
        """The VMM, or the processor's log, says that a page was written."""
        if slot := self.slot_of(gfn):
            slot.wrote(gfn)
            if slot.page(gfn) == "clean":
                slot.state[gfn] = "present"

    def tracked(self, gfn: int) -> bool:
        """Is every write to the page emulated, always? (kvm_policy.md §2.2)"""
        return any(page.role.level > 1 or not self.policy.unsync for page in self.tables.shadows[gfn])

    def may_write(self, gfn: int, *, can_unsync: bool, prefetch: bool) -> bool:
        """May an entry map the page writable? Shadowed page tables go out of sync for that."""
        if self.tracked(gfn):
            return False
        pages = self.tables.shadows[gfn]
        if pages and not can_unsync:
            return False
        if prefetch and not all(page.unsync for page in pages):
            return False
        for page in pages:
            self.count["unsynced"] += not page.unsync
            page.unsync = True
        return True

    def write_protect(self, gfn: int, *levels: int, for_good: bool) -> bool:
        """No leaf lets the guest write there; for_good: no fault gives that back before the VMM says so.

        KVM before Linux 6.1 lets go of large leaves then. Returns whether any let it, or could have come to.
        """
        found = False
        for page, index, leaf in self.tables.leaves_of(gfn, *levels):
            if leaf.level > 1 and for_good and not self.policy.rules.large_protected:
                self.tables.put(page, index, None)
                found = True
                continue
            found |= leaf.writable or (for_good and leaf.may_write)
            may = leaf.may_write and not for_good
            self.tables.put(page, index, replace(leaf, access=leaf.access & ~W, may_write=may))
        return found

    def zap(self, page: TablePage) -> tuple[int, bool]:
        """The table page goes, and what is out of sync below it (kvm_policy.md §2.5). Returns how many pages went, and
        whether any can be freed at once, for which KVM flushes: one that is a root is freed later (§14)."""
        gone, freed = 0, False
        if not page.role.direct:
            for below in list(self.tables.below(page)):
                if below.unsync and (below.gfn, below.role) in self.tables.pages:
                    more, _ = self.zap(below)
                    gone, freed = gone + more, True
        kept = page in self.roots  # it is freed, and counted once more, before the next VM entry
        self.stats.count["mmu_shadow_zapped"] += 1 + kept
        self.stats.request(kept)
        self.tables.remove(page)
        self.roots = [None if root is page else root for root in self.roots]
        return gone + 1, freed or not kept

    def zap_all(self) -> None:
        self.stats.count["mmu_shadow_zapped"] += len(self.tables.pages)
        self.stats.roots_gone += 0 if self.policy.tdp else sum(root is not None for root in self.roots)
        for page in list(self.tables.pages.values()):
            self.tables.remove(page)
        self.roots = [None] * len(self.roots)

    def make_room(self) -> None:
        """Where fewer than 5 pages are left of those allowed, the oldest go until 25 are (kvm_policy.md §2.5)."""
        spare = max(0, self.policy.limit - len(self.tables.pages))
        if not self.policy.limit or self.policy.tdp or spare >= 5:
            return
        wanted = 25 - spare
        while wanted > 0:
            old = [page for page in self.tables.pages.values() if page not in self.roots]
            if not old:
                return
            gone, _ = self.zap(min(old, key=lambda page: page.number))
            self.stats.request(wanted == 25 - spare)  # one for all that go
            self.count["recycled"] += gone
            wanted -= gone
