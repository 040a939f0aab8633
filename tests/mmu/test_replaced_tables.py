"""A large leaf and a table of small entries at the same place: which of them stands, and what becomes of the other."""

from __future__ import annotations

from typing import Any

import pytest

from fastmmu import Config, Machine
from tests.support.flat_guest import PAGE, flat
from tests.support.vmm_tables import FRAME

PS = 0x80
VMMS = ("kernel", "python")


def linked(machine: Machine, table: int, level: int) -> set[int]:
    """Table pages that the VMM's tables lead to, from this one on."""
    found = {table}
    for index in range(512):
        entry = int(machine.memory.u64[(table >> 3) + index])
        if level > 1 and entry & 7 and not entry & PS:
            found |= linked(machine, entry & FRAME, level - 1)
    return found


def small(machine: Machine, va: int) -> bool:
    """The entry that a walk of the VMM's tables for va finds is of 4 KB."""
    table = machine.vmcs["guest_cr3"] & FRAME
    for level in (4, 3, 2):
        entry = int(machine.memory.u64[(table >> 3) + (va >> 9 * level + 3 & 511)])
        if entry & PS:
            return False
        table = entry & FRAME
    return bool(machine.memory.u64[(table >> 3) + (va >> 12 & 511)])


@pytest.mark.parametrize("vmm", VMMS)
def test_a_table_goes_when_a_large_leaf_takes_its_place(vmm: Any) -> None:
    """5.10 makes pages large again after logging, over the tables that logging had needed (kvm_policy.md §14)."""
    machine = flat(Config(memory="64M", mmu="ept", host_pages="2m", kvm="5.10", vmm=vmm))
    machine.vmm.start_dirty_log(0)
    for page in range(4):
        machine.store(PAGE + (page << 12), 1)
    assert not machine.vmm.counters()["tables_zapped"]
    machine.vmm.stop_dirty_log(0)
    machine.tlb.reset()
    machine.load(PAGE, 1)
    assert machine.vmm.counters()["entries_zapped"] >= 4
    root = machine.vmcs["eptp"] & FRAME
    tables = machine.vmm.reverse_maps()[1]
    assert linked(machine, root, 4) == {address for address, _ in tables}


@pytest.mark.parametrize("kvm", ["6.1", "6.12"])
@pytest.mark.parametrize("vmm", VMMS)
def test_a_guests_large_page_stays_split_where_code_runs(vmm: Any, kvm: Any) -> None:
    """Shadow paging begins at the guest's leaf of 2 MB, where the table stands (kvm_policy.md §8)."""
    machine = flat(Config(memory="64M", mmu="shadow", host_pages="2m", nx_huge_pages=True, kvm=kvm, vmm=vmm))
    machine.access(PAGE, "x")
    assert small(machine, PAGE)
    machine.load(PAGE + 0x10000, 1)
    assert small(machine, PAGE), "the executable page was made large"
    assert small(machine, PAGE + 0x10000)
