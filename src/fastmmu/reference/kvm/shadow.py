"""Executable specification of KVM's shadow paging: what a #PF was, and the entry for it (kvm_policy.md §2)."""

from __future__ import annotations

from ...dtypes import StepKind
from ..paging.outcome import Mapped, Outcome, PageFault
from ..paging.state import State
from ..paging.walk import walk
from .map import Done, Fault, fault_in, map_below, prefetch_direct, table
from .sync import invalidate, prefetch_guest, rights_of, sync_below, sync_page
from .tables import ALL, Leaf, Link, Mark, Role, Switch, TablePage, U, W, X, index_of
from .vm import Vm

__all__ = ["shadow_fault"]


def shadow_fault(
    vm: Vm, state: State, la: int, access: str, present: bool, known: Mark | None
) -> tuple[Done | PageFault, int]:
    """The #PF that the processor met in the shadow tables; and the guest-physical address, where there is one.

    state: the guest's registers with the privilege of the access. present: bit 0 of the error code. known: the mark of
    MMIO that the processor met; what the guest's own tables deny or lead to is asked of them all the same.
    """
    outcome = walk(vm.memory, state, la, access)
    for change in outcome.changes:
        vm.wrote(change.hpa >> 12)
    if isinstance(outcome, PageFault):
        if outcome.error_code & 1 and not outcome.error_code & 8:
            invalidate(vm, vm.root, la)  # like the processor, which drops the translation that denied
        return outcome, 0
    assert isinstance(outcome, Mapped)
    fault = Fault(la, outcome.gpa, access in ("w", "rw"), access == "x", present)
    if known and known.gfn == fault.gfn:
        return Done.EMULATE, outcome.gpa
    if fault.write and vm.tracked(fault.gfn) and (present or not vm.policy.rules.tracked_if_present):
        if vm.policy.flooding:
            for page, _, _ in vm.tables.path(vm.root, la):
                page.writes = 0
        return Done.EMULATE_STORE, outcome.gpa
    if stopped := fault_in(vm, fault):
        return stopped, outcome.gpa
    if fault.slot is None and not vm.policy.mmio_caching:
        return Done.EMULATE, outcome.gpa
    vm.make_room()
    if vm.roots[0] is None:
        return Done.RETRY, outcome.gpa
    return map_linear(vm, outcome, fault, state), outcome.gpa


def map_linear(vm: Vm, outcome: Mapped, fault: Fault, state: State) -> Done:
    """The path of shadow pages beside the guest's tables, and the leaf."""
    path = guest_path(outcome)
    leaf_level = min(path)
    page, access = vm.root, ALL
    for level in range(4, leaf_level, -1):
        page.writes = 0
        access &= rights_of(path[level][1])
        gfn = path[level - 1][0] >> 12
        if gfn in vm.tables.nested:  # agile.md §4
            vm.tables.put(page, index_of(fault.address, level), Switch(gfn, access))
            return Done.FIXED
        page = step_down(vm, page, index_of(fault.address, level), gfn, access)
    page.writes = 0
    access &= rights_of(path[leaf_level][1])
    if fault.slot and fault.write and not outcome.rw:
        # allowed by CR0.WP = 0 only: writable for the supervisor alone (kvm_policy.md §2.1)
        access = (access | W) & ~U
        if state.smep:
            access &= ~X
    if not outcome.dirty:  # the first write must fault, to set the guest's D
        access &= ~W
    vm.count["dirty_faults"] += bool(fault.write and fault.slot and fault.slot.log)
    done, page, index = map_below(vm, page, fault, leaf_level, access)
    if done is not Done.SPURIOUS and page.role.level == 1 and vm.policy.prefetch:
        if page.role.direct:
            prefetch_direct(vm, page, index)
        else:
            prefetch_guest(vm, page, index)
    return done


def guest_path(outcome: Outcome) -> dict[int, tuple[int, int]]:
    """{level: (address of the guest's entry, entry)}."""
    return {step.level: (step.gpa, step.entry) for step in outcome.steps if step.kind == StepKind.GUEST}


def step_down(vm: Vm, page: TablePage, index: int, gfn: int, access: int) -> TablePage:
    """The shadow of the guest's next table. Before it is linked it is made to follow the guest's again."""
    entry = page.entries.get(index)
    role = Role(page.role.level - 1, False, access, page.role.registers)
    if isinstance(entry, Link) and (entry.page.gfn, entry.page.role) == (gfn, role):
        return entry.page
    child, new = table(vm, gfn, role)
    if not new:
        if child.unsync:
            vm.stats.request(sync_page(vm, child))
        child.writes = 0
        sync_below(vm, child)
    vm.count["splits"] += isinstance(entry, Leaf)
    vm.stats.request(isinstance(entry, Leaf))
    vm.tables.put(page, index, Link(child))
    return child
