"""Executable specification of KVM's mappings: the leaf for a page, direct maps, their faults (kvm_policy.md §3, §4)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from ..paging.npt import CODE_FINAL, CODE_ID, CODE_P, CODE_RSVD, CODE_W
from ..paging.outcome import NestedPageFault, PageFault
from .stats import loses
from .tables import ALL, Entry, Leaf, Link, Mark, Role, TablePage, W, X, index_of
from .vm import Slot, Vm

__all__ = ["Done", "Fault", "class_of", "fault_in", "load_again", "make_leaf", "map_below", "map_direct",
           "nested_fault", "prefetch_direct", "set_leaf", "table"]  # fmt: skip


class Done(enum.Enum):
    """What became of a fault."""

    FIXED = "an entry changed"
    SPURIOUS = "the entry already said so"
    FAST = "a right was given back"
    EMULATE = "the VMM carries the access out: no memory"
    EMULATE_STORE = "the VMM carries the store out: the page is a table that it shadows"
    RETRY = "the host changed its own tables meanwhile"


@dataclass
class Fault:
    """An access that the VMM's tables did not allow. address: what they translate, linear or guest-physical."""

    address: int
    gpa: int
    write: bool
    fetch: bool
    present: bool
    slot: Slot | None = None
    host_writable: bool = False

    @property
    def gfn(self) -> int:
        return self.gpa >> 12


def nested_fault(outcome: NestedPageFault) -> tuple[Fault, bool, bool]:
    """What a nested page fault asks; whether it is by a reserved bit, as of a mark; whether of the data (npt.md §7)."""
    code, gpa = outcome.error_code, outcome.gpa
    reserved = bool(code & CODE_RSVD)
    fault = Fault(gpa, gpa, bool(code & CODE_W), bool(code & CODE_ID), bool(code & CODE_P) and not reserved)
    return fault, reserved, bool(code & CODE_FINAL)


def class_of(vm: Vm, done: Done | PageFault, gfn: int, denied: bool, dirty: int, swapped: int) -> str:
    """What a fault needed the VMM for, the first that holds. dirty, swapped: what was counted of these before it."""
    if isinstance(done, PageFault):
        return "guest"
    if done is Done.EMULATE and ((slot := vm.slot_of(gfn)) is None or slot.emulated):
        return "mmio"
    if vm.count["swap_ins"] > swapped:
        return "swapped_in"
    if done is Done.SPURIOUS:
        return "spurious"
    if vm.count["dirty_faults"] > dirty:
        return "dirty"
    if denied or done in (Done.EMULATE, Done.EMULATE_STORE):
        return "protected"
    return "spurious" if done is Done.RETRY else "build"


# ---- the host's page ------------------------------------------------------------------------------------------


def fault_in(vm: Vm, fault: Fault) -> Done | None:
    """The host provides the page; None: it did, or there is no slot."""
    fault.slot = slot = vm.slot_of(fault.gfn)
    if slot is None:
        return None
    if slot.emulated:
        return Done.EMULATE
    if slot.readonly:
        return Done.EMULATE if fault.write else None
    page = slot.page(fault.gfn)
    if page == "swapped":  # it stays on disk as well, and is read-only so that the first write is seen
        vm.count["swap_ins"] += 1
        slot.state[fault.gfn] = page = "clean"
    if fault.write and page != "present":
        slot.state[fault.gfn] = "present"
        if page == "zero":  # copied on write: the host unmaps the page of zeros, and the fault is stale
            vm.stats.request(bool(vm.tables.leaves_of(fault.gfn, 1, 2)))
            for place in vm.tables.leaves_of(fault.gfn, 1, 2):
                vm.tables.put(place[0], place[1], None)
            vm.count["retries"] += 1
            return Done.RETRY
        page = "present"
    if page == "absent":
        slot.state[fault.gfn] = "zero"
    fault.host_writable = page == "present"
    return None


def load_again(vm: Vm, done: Done, gpa: int, access: str) -> bool:
    """A load that is to be emulated runs once more, unless an entry says that nothing is there (kvm_policy.md §14)."""
    slot = vm.slot_of(gpa >> 12)
    again = done is Done.EMULATE and slot is not None and slot.emulated and vm.policy.rules.apic_load_retried
    again = again and access == "r" and vm.last_retry != gpa
    if again:
        vm.stats.emulated(gpa, mmio=True)
    vm.last_retry = gpa if again else 0
    return again


# ---- one leaf -------------------------------------------------------------------------------------------------


def make_leaf(
    vm: Vm,
    old: Entry | None,
    slot: Slot,
    gfn: int,
    level: int,
    access: int,
    *,
    prefetch: bool,
    host_writable: bool,
    can_unsync: bool = True,
) -> tuple[Leaf, bool]:
    """The entry that maps a page, and whether W was refused because the page is a shadowed table."""
    if level > 1 and vm.policy.nx_huge:
        access &= ~X
    if not host_writable:
        access &= ~W
    may_write = dirty = bool(access & W)
    refused = False
    if may_write and (isinstance(old, Link) or (isinstance(old, Leaf) and old.writable)):
        dirty = can_unsync and not vm.policy.rules.rewrite_stays_clean  # else D is left to the processor
    elif may_write and not vm.may_write(gfn, can_unsync=can_unsync, prefetch=prefetch):
        refused, may_write, dirty = True, False, False
        access &= ~W
    if access & W:
        slot.wrote(gfn)
    flags = vm.policy.shadow or vm.policy.ad
    leaf = Leaf(gfn, level, access, flags and not prefetch, flags and dirty, may_write, host_writable)
    return leaf, refused


def set_leaf(
    vm: Vm,
    page: TablePage,
    index: int,
    slot: Slot | None,
    gfn: int,
    access: int,
    *,
    prefetch: bool = False,
    write: bool = False,
    host_writable: bool = True,
) -> Done:
    """Maps a page at an entry; without a slot the entry is marked."""
    if slot is None:
        vm.count["mmio_marked"] += 1
        vm.tables.put(page, index, Mark(gfn, vm.generation))
        return Done.EMULATE
    old = page.entries.get(index)
    flush = False
    if not vm.policy.tdp and (isinstance(old, Link) or (isinstance(old, Leaf) and old.gfn != gfn)):
        vm.tables.put(page, index, None)  # the table below stays for another use; another page is forgotten first
        old, flush = None, True
    new, refused = make_leaf(
        vm, old, slot, gfn, page.role.level, access, prefetch=prefetch, host_writable=host_writable
    )
    if new != old:
        vm.tables.put(page, index, new)
        if isinstance(old, Leaf) and not vm.policy.tdp:
            flush = loses(old, new, flags=vm.policy.shadow or vm.policy.ad)
        vm.stats.request(flush or isinstance(old, Link))
        if isinstance(old, Link):  # the TDP MMU has no tables but those in use
            vm.zap(old.page)
    if refused and write:
        return Done.EMULATE_STORE
    return Done.SPURIOUS if new == old else Done.FIXED


# ---- tables down to it ----------------------------------------------------------------------------------------


def table(vm: Vm, gfn: int, role: Role) -> tuple[TablePage, bool]:
    """The table page of (gfn, role), and whether it is new. A guest table is write-protected from then on."""
    page = vm.tables.pages.get((gfn, role))
    if page:
        return page, False
    if not role.direct:
        if role.level > 1:  # protected for good: what is out of sync would never be synchronized
            unsync = [other for other in vm.tables.shadows[gfn] if other.unsync]
            vm.stats.request(bool(unsync))
            for other in unsync:
                vm.zap(other)
        vm.stats.request(vm.write_protect(gfn, 1, 2, for_good=True))
        if vm.beside:
            vm.beside.write_protect(gfn, 1, 2, for_good=True)
    return vm.tables.make(gfn, role), True


def large_allowed(vm: Vm, slot: Slot, gfn: int) -> bool:
    """May a 2 MB leaf cover this page? (kvm_policy.md §4.3)"""
    return slot.backs_large(gfn) and slot.log is None and not vm.tables.tables_near(gfn)


def map_below(vm: Vm, page: TablePage, fault: Fault, largest: int, access: int) -> tuple[Done, TablePage, int]:
    """Maps the page from a table page on down, through direct ones. largest: level of the guest's own page.

    Also returns where the leaf stands.
    """
    goal = 2 if largest > 1 and fault.slot and large_allowed(vm, fault.slot, fault.gfn) else 1
    split = goal == 2 and fault.fetch and vm.policy.nx_huge  # kvm_policy.md §8
    if split:
        goal = 1
    while True:
        level = page.role.level
        index = index_of(fault.address, level)
        entry = page.entries.get(index)
        if (
            vm.policy.nx_huge
            and level == goal == 2
            and isinstance(entry, Link)
            and (entry.page.split or not vm.policy.rules.nx_own_tables)
        ):
            goal = 1
        if level == goal:
            break
        if not (isinstance(entry, Link) and entry.page.role.access == access):
            role = Role(level - 1, True, access, page.role.registers)
            child, _ = table(vm, fault.gfn & -(1 << 9 * (level - 1)), role)
            vm.count["splits"] += isinstance(entry, Leaf)
            vm.stats.request(isinstance(entry, Leaf | Link))
            vm.tables.put(page, index, Link(child))
            page = child
        else:
            page = entry.page
        if split and level == 2:
            page.split = True
    gfn = fault.gfn & -(1 << 9 * (goal - 1))
    done = set_leaf(vm, page, index, fault.slot, gfn, access, write=fault.write, host_writable=fault.host_writable)
    return done, page, index


def prefetch_direct(vm: Vm, page: TablePage, index: int) -> None:
    """The other empty entries of the aligned eight, run by run, until a page is not at hand (kvm_policy.md §2.1)."""
    first = index & ~7
    empty = [i != index and not isinstance(page.entries.get(i), Leaf | Link) for i in range(first, first + 8)] + [False]
    start = None
    for i, free in enumerate(empty):
        if free and start is None:
            start = i
        elif not free and start is not None:
            last = i == len(empty) - 1  # the run that ends the eight
            if (last and not vm.policy.rules.prefetch_last_run) or not prefetch_run(
                vm, page, range(first + start, first + i)
            ):
                return
            start = None


def prefetch_run(vm: Vm, page: TablePage, run: range) -> bool:
    gfn = page.gfn + run[0]
    slot = vm.slot_of(gfn)
    if slot is None or (slot.log and page.role.access & W) or not slot.holds(gfn + len(run) - 1):
        return False
    if not slot.pinned(gfn):
        return False
    for i in run:
        if not slot.pinned(page.gfn + i):
            break
        set_leaf(vm, page, i, slot, page.gfn + i, page.role.access, prefetch=True)
        vm.count["prefetched"] += 1
    return True


# ---- direct faults --------------------------------------------------------------------------------------------


def fast_fault(vm: Vm, fault: Fault) -> Done | None:
    """A right given back without the host and without tables (kvm_policy.md §5); None: it takes more."""
    page, index, leaf = list(vm.tables.path(vm.root, fault.address))[-1]
    slot = vm.slot_of(fault.gfn)
    if not isinstance(leaf, Leaf) or slot is None:
        return None
    need = X if fault.fetch else W if fault.write else 0
    if leaf.allows(need):
        vm.stats.count["pf_fast"] += 1
        return Done.SPURIOUS
    new = replace(leaf, tracked=False)
    if fault.write and leaf.may_write:
        if leaf.level > 1 and slot.log:
            return None
        new = replace(new, access=leaf.access | W)
    if not new.allows(need):
        return None
    vm.tables.put(page, index, new)
    if new.writable and slot.log:
        slot.wrote(fault.gfn)
        vm.count["dirty_faults"] += 1
    vm.count["fast"] += 1
    vm.stats.count["pf_fast"] += 1
    return Done.FAST


def map_direct(vm: Vm, fault: Fault) -> Done:
    """Guest-physical addresses are what the tables translate: EPT (kvm_policy.md §3.2)."""
    may_be_fast = vm.policy.fast and (fault.write if fault.present else not vm.policy.ad)
    if may_be_fast and (fast := fast_fault(vm, fault)):
        return fast
    if stopped := fault_in(vm, fault):
        return stopped
    if fault.slot is None and not vm.policy.mmio_caching:
        return Done.EMULATE
    vm.make_room()
    vm.count["dirty_faults"] += bool(fault.write and fault.slot and fault.slot.log)
    done, page, index = map_below(vm, vm.root, fault, 2, ALL)
    if done is not Done.SPURIOUS and page.role.level == 1 and vm.policy.prefetch and vm.policy.ad and not vm.policy.tdp:
        prefetch_direct(vm, page, index)
    return done
