"""Memory types as KVM sets them, and marks of MMIO (kvm_policy.md §4.4, §7)."""

from __future__ import annotations

import pytest

import fastmmu
from fastmmu import GuestState, Machine, MemorySlot, MemoryType, Mtrrs
from tests.support.device_guest import DEVICE, LINUX, flat

FRAME = 0x000F_FFFF_FFFF_F000


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_marks_go_where_their_generation_begins_anew(mmu: str) -> None:
    """19 bits of it stand in a mark: after 2**19 changes of the slots it would pass for one of today (§4.4)."""
    machine = flat(LINUX.replace(mmu=mmu), slots=(MemorySlot(1 << 32, 0x1000),))
    vmm = machine.vmm

    def marked() -> int:
        machine.access(DEVICE)
        return int(vmm.counters()["mmio_marked"])

    assert marked() == marked() == 1
    for _ in range(1 << 18):
        vmm.start_dirty_log(1)
        vmm.stop_dirty_log(1)
    assert marked() == marked() == 2


def types(machine: Machine, la: int) -> tuple[int, int, MemoryType]:
    """Type and IPAT of the EPT leaf of a page, and the effective type of an access, by the walk."""
    machine.access(la)
    eptp = fastmmu.Eptp(machine.vmcs["eptp"], maxphyaddr=46)
    walked = fastmmu.walk(machine.memory, shifted(machine), la, eptp=eptp)
    entry = [int(step.entry) for step in walked.steps if step.kind == fastmmu.StepKind.EPT][-1]
    return entry >> 3 & 7, entry >> 6 & 1, walked.memory_type


def shifted(machine: Machine) -> GuestState:
    state: GuestState = machine.state
    return state.replace(cr3=0x1000)


def test_without_such_a_device_all_is_write_back() -> None:
    machine = flat(LINUX.replace(mmu="ept"), mtrrs=Mtrrs(def_type=0x800))
    assert types(machine, 0x20_0000) == (6, 1, MemoryType.WB)


def test_with_noncoherent_dma_the_guests_types_count() -> None:
    """MTRR type in the leaf, PAT honoured; a region of two types is mapped small."""
    write_through = ((0x20_0000 | 4, (FRAME & ((1 << 46) - 1) & ~0xFFF) | 0x800),)
    config = LINUX.replace(mmu="ept", noncoherent_dma=True, host_pages="2m")
    machine = flat(config, mtrrs=Mtrrs(def_type=0x806, variable=write_through))
    assert types(machine, 0x20_0000) == (4, 0, MemoryType.WT)
    assert types(machine, 0x20_1000) == (6, 0, MemoryType.WB)
    assert types(machine, 0x40_0000) == (6, 0, MemoryType.WB)
    assert machine.vmm.counters()["pages"][:2] == [2, 2]  # two pages at 200000h, small; 0 and 400000h large
    machine.vmm.guest_caching(Mtrrs(def_type=0x800))
    assert types(machine, 0x40_0000) == (0, 0, MemoryType.UC)
    for quirk, mt in ((True, 6), (False, 0)):
        machine = flat(config.replace(cd_quirk=quirk), mtrrs=Mtrrs(def_type=0x804))
        machine.vmm.guest_caching(uncached=True)
        assert types(machine, 0x20_0000)[:2] == (mt, 1)


def test_pages_of_a_device_are_uncacheable_or_write_combining() -> None:
    slots = (MemorySlot(0x2000_0000, 0x20_0000, device=True),)
    machine = flat(LINUX.replace(mmu="ept"), slots=slots)
    assert types(machine, 0x2000_0000) == (0, 0, MemoryType.WC)


# ---- large pages that must not be executable (§8) -----------------------------------------------------------------


def counted(machine: Machine, *names: str) -> list[int]:
    counters = machine.vmm.counters()
    return [counters[name] for name in names]


@pytest.mark.parametrize("tdp", [True, False])
def test_code_in_large_pages(tdp: bool) -> None:
    """An exec fault has small pages; one period gives one in `ratio` regions back, those split first, till code runs
    there again."""
    machine = flat(LINUX.replace(mmu="ept", host_pages="2m", nx_huge_pages=True, tdp_mmu=tdp))
    regions = [number << 21 for number in range(2, 9)]
    for la in regions:
        machine.access(la, "w")
    (large,) = [counted(machine, "pages")[0][1]]
    for la in regions:
        assert machine.access(la | 0x5000, "x").gpa == la | 0x5000
        machine.access(la | 0x5000, "x")
    assert counted(machine, "nx_lpage_splits", "nx_recovered") == [7, 0]
    assert counted(machine, "pages")[0][1] == large - 7
    exits = machine.counters()["vm_exits"]
    for la in regions:
        machine.access(la | 0x5000, "x")
    assert machine.counters()["vm_exits"] == exits
    assert machine.vmm.recover_nx(0) == 0
    assert machine.vmm.recover_nx() == 1
    assert machine.vmm.recover_nx(3) == 2  # of six
    assert counted(machine, "nx_lpage_splits", "nx_recovered") == [4, 3]
    for la in regions:
        machine.access(la | 0x5000, "r")
    assert machine.counters()["vm_exits"] == exits + 3  # the first three
    assert counted(machine, "pages")[0][1] == large - 4
    machine.access(regions[0] | 0x5000, "x")
    assert counted(machine, "nx_lpage_splits") == [5]
    assert machine.vmm.recover_nx(1) == 5
    assert machine.vmm.recover_nx(1) == 0


def test_without_the_workaround_large_pages_are_executable() -> None:
    machine = flat(LINUX.replace(mmu="ept", host_pages="2m"))
    machine.access(0x40_0000, "w")
    exits = machine.counters()["vm_exits"]
    machine.access(0x40_0000, "x")
    assert machine.counters()["vm_exits"] == exits
    assert counted(machine, "nx_lpage_splits") == [0]


# ---- by KVM's names (§12) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", ["tdp", "older", "shadow"])
def test_statistics(mmu: str) -> None:
    """Three pages through two address spaces of the guest's, one of them twice over."""
    machine = flat(LINUX.replace(mmu="shadow" if mmu == "shadow" else "ept", tdp_mmu=mmu == "tdp"))
    words = machine.guest_memory.u64
    words[0x1008 >> 3] = 0x2003  # 512 GB on, the same again
    pages = (0x40_0000, 0x41_0000, 0x42_0000)
    for la in (*pages, *(page | 1 << 39 for page in pages)):
        machine.access(la, "w")
    found, counters = machine.vmm.stats(), machine.counters()
    assert found["exits"] == counters["vm_exits"]
    assert (found["pages_2m"], found["pages_1g"], found["nx_lpage_splits"]) == (0, 0, 0)
    assert found["pages_4k"] == counted(machine, "pages")[0][0] >= 3
    assert found["shadow_bytes"] == 4096 * counters["vmm_tables"]
    assert found["max_mmu_rmap_size"] == {"tdp": 0, "older": 1, "shadow": 1}[mmu]
    assert found["mmu_cache_miss"] == (0 if mmu == "tdp" else counters["vmm_tables_made"])
    if mmu == "shadow":  # the page directory is shadowed once, and again where it is reached with other rights
        words[0x1010 >> 3] = 0x2001
        machine.access(pages[0] | 2 << 39)
        assert machine.vmm.stats()["max_mmu_rmap_size"] == 2
        machine.store(0x3000 | 1 << 39, 0x20_0083)  # an entry above page tables
        assert machine.vmm.stats()["mmu_pde_zapped"] >= 1
    machine.access(0x1000_0000)
    assert machine.vmm.stats()["pf_mmio_spte_created"] == 1
