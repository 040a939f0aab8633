"""How the APIC-access page is translated: large pages, the TLB, flags, and page tables that lie there (apic.md §4)."""

from __future__ import annotations

from typing import Any

import pytest

from fastmmu import Action, Config, GuestState, Machine, Policy, PolicyError, StateError
from tests.support.apic_guest import LARGE, PAGE, VIRTUAL, Seen, bare, exits
from tests.support.apic_tables import TPR


@pytest.mark.parametrize("config", VIRTUAL, ids=lambda config: "-".join(config.values()))
@pytest.mark.parametrize("backing", ["4k", "2m"])
def test_through_a_large_page_and_out_of_the_tlb(config: dict[str, Any], backing: str) -> None:
    """The guest's page has 2 MB, the VMM's for the APIC's page 4 KB; a hit in the TLB is compared as well."""
    m = bare(**config, host_pages=backing)
    assert m.store(LARGE + TPR, 0x50, 4).gpa == 0xFEE0_0080
    for la in (LARGE, PAGE):
        before = m.counters()
        for _ in range(5):
            assert m.load(la + TPR, 4).value == 0x50
            assert m.load(la + 0x390, 4).value == 0
        after = m.counters()
        assert exits(m, "apic_access") == before["exits_by_reason"].get("apic_access", 0) + 5
        assert after["l1d_hits"] >= before["l1d_hits"] + (0 if not m.config.vpid and config["mmu"] == "shadow" else 4)
    seen = m.counters()["mmio"]
    assert m.load(LARGE + 0x1000, 4) == (0xFEE0_1000, None, None, None)  # beside it there is nothing
    assert m.counters()["mmio"] == seen + 1
    assert m.apic.page[TPR] == 0x50


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_with_vpid_exits_leave_the_translation_cached(mmu: str) -> None:
    m = bare(mmu=mmu, tpr="flexpriority", vpid=True)
    m.load(PAGE + 0x20, 4)
    before = m.counters()
    for _ in range(10):
        m.load(PAGE + 0x20, 4)
    after = m.counters()
    assert exits(m, "apic_access") == 11
    assert after["l1d_hits"] == before["l1d_hits"] + 10
    assert after["walks"] == before["walks"]


def test_flags_are_set_and_the_write_is_logged_before_the_exit() -> None:
    """§4, priority: accessed and dirty flags of both stages come first."""
    m = bare(mmu="ept", tpr="flexpriority", pml=True, kvm="5.10")
    assert m.guest_memory.read64(0x5000) & 0x60 == 0
    m.load(PAGE + 0x20, 4)
    assert m.guest_memory.read64(0x5000) & 0x60 == 0x20
    m.store(PAGE + 0x20, 0, 4)
    assert m.guest_memory.read64(0x5000) & 0x60 == 0x60
    assert exits(m, "apic_access") == 2


# ---- page tables there ---------------------------------------------------------------------------------------

TABLE = PAGE + 0x20_0000  # its page table is the APIC's page


def with_table(policy: Policy | None = None, **config: Any) -> Machine:
    m = bare(policy, **config)
    m.guest_memory.write64(0x4008, 0xFEE0_0003)
    return m


@pytest.mark.parametrize("tpr", ["flexpriority", "apicv"])
@pytest.mark.parametrize("ad", [False, True])
def test_a_page_table_on_the_page_exits_and_kvm_finds_it_empty(tpr: str, ad: bool) -> None:
    """KVM walks the guest's tables itself, through the memory of the page, which holds zeros: #PF, not present."""
    m = with_table(mmu="ept", tpr=tpr, ept_ad=ad)
    for access, code in (("r", 0), ("w", 2), ("rw", 2), ("x", 16)):
        assert m.access(TABLE + 0x3123, access) == (None, code, TABLE + 0x3123)
        assert m.access(TABLE + 0x3123, access, user=True) == (None, code | 4, TABLE + 0x3123)
    assert exits(m, "apic_access") == 8
    assert m.counters()["guest_faults"] == 8
    assert m.counters()["apic_emulated"] == 0


def test_the_exit_tells_the_offset_and_kind_15() -> None:
    policy = Seen(Action.INJECT_PAGE_FAULT)
    m = with_table(policy, mmu="ept", tpr="flexpriority")
    for page in (0, 3, 511):
        m.access(TABLE + 0x1000 * page)
        assert policy.exits.pop() == 44 << 16 | 15 << 12 | 8 * page
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)  # memory now
    m.guest_memory.write64(0xA000, 0)
    assert m.access(TABLE)[1:3] == (0, TABLE)
    m.store(PAGE, 0xA003)
    assert m.store(TABLE + 8, 77).gpa == 0xA008
    assert m.load(TABLE + 8).value == 77
    assert policy.exits == []


def test_present_entries_there_stop_the_machine() -> None:
    m = with_table(mmu="ept", tpr="flexpriority")
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)
    m.store(PAGE, 0xA003)
    m.apic.wrmsr(0x1B, 0xFEE0_0100)
    m.apic.wrmsr(0x1B, 0xFEE0_0900)
    assert m.access(TABLE + 0x1000)[1:3] == (0, TABLE + 0x1000)
    with pytest.raises(PolicyError, match="a paging structure for 0xc0200008 lies on the APIC-access page"):
        m.access(TABLE + 8)
    assert m.access(0).gpa == 0  # the machine is whole


def test_a_table_that_the_walk_caches_hold_is_recognised() -> None:
    """Mode changes flush nothing here; the exit comes all the same."""
    m = with_table(mmu="ept", tpr="flexpriority", vpid=True)
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)
    m.store(PAGE, 0xA003)
    assert m.access(TABLE).gpa == 0xA000
    m.apic.wrmsr(0x1B, 0xFEE0_0100)
    m.apic.wrmsr(0x1B, 0xFEE0_0900)
    assert m.access(TABLE + 0x1000)[1:3] == (0, TABLE + 0x1000)
    assert exits(m, "apic_access") == 1


def test_without_the_control_and_under_shadow_paging() -> None:
    """No guest-physical access to virtualize then; KVM's own walk finds no entry all the same."""
    for config in ({"mmu": "ept", "tpr": "trap"}, *({"mmu": "shadow", "tpr": t} for t in ("flexpriority", "trap"))):
        m = with_table(**config)
        for access, code in (("r", 0), ("w", 2), ("x", 16)):
            assert m.access(TABLE + 0x3123, access) == (None, code, TABLE + 0x3123)
        assert m.counters()["apic_emulated"] == 0


@pytest.mark.parametrize("tpr", ["flexpriority", "trap"])
def test_pdptes_on_the_page_are_loaded_by_the_vmm(tpr: str) -> None:
    """MOV to CR3 of a PAE guest reads them by guest-physical address; KVM emulates it, and finds four that are 0."""
    policy = Seen()
    for each in (None, policy):
        state = GuestState(cr0=0x8001_0033, cr4=0x20, efer=0, cr3=0x1000, maxphyaddr=46)
        m = Machine(Config(memory="64M", mmu="ept", tpr=tpr), guest_kernel=False, state=state, policy=each)
        m.guest_memory.write64(0x1000, 0x2001)
        m.guest_memory.write64(0x2000, 0x83)
        m.mov_cr3(0x1000)
        assert m.access(0x5000).gpa == 0x5000
        if tpr == "trap":
            with pytest.raises(StateError, match="PDPTE"):
                m.mov_cr3(0xFEE0_0020)
            assert m.access(0x5000).gpa == 0x5000
            continue
        m.mov_cr3(0xFEE0_0020)
        assert exits(m, "apic_access") == 1
        assert m.access(0x5000) == (None, 0, 0x5000)
        m.mov_cr3(0x1000)
        assert m.access(0x5000).gpa == 0x5000
    assert policy.exits == ([] if tpr == "trap" else [44 << 16 | 15 << 12 | 0x20])
