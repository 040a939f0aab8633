"""Executable specification of KVM's dirty logs, and of a host that takes pages (kvm_policy.md §4.1, §4.2, §6)."""

from __future__ import annotations

from dataclasses import replace

from .map import large_allowed
from .tables import Leaf, Link, Role, TablePage, W, X
from .vm import Log, Slot, Vm

__all__ = ["clear", "get", "start", "stop", "swap_out", "young"]


def protect(vm: Vm, gfn: int) -> None:
    """The next write to the page is seen: by a fault, or by the processor, which logs where it sets D."""
    if not vm.policy.pml:
        vm.write_protect(gfn, 1, for_good=False)
        return
    for page, index, leaf in vm.tables.leaves_of(gfn, 1):
        vm.tables.put(page, index, replace(leaf, dirty=False))


def split(vm: Vm, page: TablePage, index: int) -> None:
    """One large leaf becomes 512 small ones with its rights."""
    large = page.entries[index]
    assert isinstance(large, Leaf)
    access = large.access | X if vm.policy.nx_huge else large.access
    child = vm.tables.make(large.gfn, Role(1, True, page.role.access, page.role.registers))
    for i in range(512):
        vm.tables.put(child, i, replace(large, gfn=large.gfn + i, level=1, access=access))
    vm.tables.put(page, index, Link(child))
    vm.count["splits"] += 1


def split_ahead(vm: Vm, gfn: int) -> None:
    if vm.policy.tdp and vm.policy.eager_split:
        for page, index, _ in vm.tables.leaves_of(gfn, 2):
            split(vm, page, index)


def start(vm: Vm, slot: Slot, *, manual: bool, initial: bool) -> None:
    """Log every write from now on. initial: every page counts as written, and is protected as the log is cleared."""
    if slot.log:
        return
    slot.log = Log(manual, manual and initial)
    vm.generation += 1
    if slot.log.initial:
        slot.log.dirty.update(range(slot.pages))
        return
    gfns = {gfn for (level, first), places in vm.tables.mapped_by.items() if places for gfn in span(level, first)}
    for gfn in sorted(gfn for gfn in gfns if slot.holds(gfn)):
        split_ahead(vm, gfn)
        protect(vm, gfn)
        vm.write_protect(gfn, 2, for_good=False)


def span(level: int, first: int) -> range:
    return range(first, first + (1 << 9 * (level - 1)))


def get(vm: Vm, slot: Slot) -> set[int]:
    """Pages written; unless the log is cleared by hand it begins anew."""
    assert slot.log
    found = set(slot.log.dirty)
    if not slot.log.manual:
        slot.log.dirty.clear()
        for page in found:
            protect(vm, slot.base + page)
    return found


def clear(vm: Vm, slot: Slot, first: int, count: int) -> bool:
    """The log of these pages begins anew. Returns whether one was in it."""
    assert slot.log
    found = sorted(slot.log.dirty & set(range(first, first + count)))
    for page in found:
        slot.log.dirty.discard(page)
        if slot.log.initial:
            split_ahead(vm, slot.base + page)
            vm.write_protect(slot.base + page, 2, for_good=vm.policy.rules.manual_log_for_good)
        protect(vm, slot.base + page)
    return bool(found)


def stop(vm: Vm, slot: Slot) -> bool:
    """Rights come back by the faults that miss them; small leaves go where a large one could stand: did any?"""
    gone = False
    slot.log = None
    vm.generation += 1
    if not vm.policy.rules.collapse_by_size:
        return drop_compound(vm, slot)
    for page in [page for page in vm.tables.pages.values() if page.role.level == 1 and page.role.direct]:
        if not (slot.holds(page.gfn) and page.gfn & 511 == 0 and large_allowed(vm, slot, page.gfn)):
            continue
        gone |= any(isinstance(entry, Leaf) for entry in page.entries.values())
        if vm.policy.tdp:
            vm.zap(page)
            continue
        for index, entry in list(page.entries.items()):
            if isinstance(entry, Leaf):
                vm.tables.put(page, index, None)
    return gone


def drop_compound(vm: Vm, slot: Slot) -> bool:
    """KVM before: small direct leaves go wherever the host has a compound page; of the TDP MMU large ones too (§14)."""
    levels = (1, 2) if vm.policy.tdp else (1,)
    gone = False
    for page in [page for page in vm.tables.pages.values() if page.role.level in levels and page.role.direct]:
        for index, entry in list(page.entries.items()):
            if isinstance(entry, Leaf) and slot.holds(entry.gfn) and slot.backs_large(entry.gfn):
                vm.tables.put(page, index, None)
                gone = True
    return gone


def swap_out(vm: Vm, slot: Slot, gfn: int) -> bool:
    """The host takes the page; not where the VMM reads a guest's table in it."""
    if slot.host != "untouched" or slot.page(gfn) not in ("present", "clean") or vm.tables.shadows[gfn]:
        return False
    vm.stats.request(bool(vm.tables.leaves_of(gfn, 1, 2)))
    for page, index, _ in vm.tables.leaves_of(gfn, 1, 2):
        vm.tables.put(page, index, None)
    slot.state[gfn] = "swapped"
    return True


def young(vm: Vm, gfn: int, *, clear: bool) -> bool:
    """Was the page used since it was asked last? Without A flags the rights of its leaves go, until they are missed;
    before Linux 6.1 the leaves."""
    found = False
    flags = vm.policy.shadow or vm.policy.ad
    for page, index, leaf in vm.tables.leaves_of(gfn, 1, 2):
        found |= leaf.accessed if flags else not leaf.tracked
        if not clear:
            continue
        if flags:
            vm.tables.put(page, index, replace(leaf, accessed=False))
        elif vm.policy.rules.access_tracking:
            vm.tables.put(page, index, replace(leaf, access=leaf.access & ~W, tracked=True))
        else:
            vm.tables.put(page, index, None)
    return found
