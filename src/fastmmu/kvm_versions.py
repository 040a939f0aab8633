"""What KVM does of its own choice, version by version: one table, from which the machine and its specification take it.

A version is a row, :func:`kvm_rules`; a rule is a column, a field of :class:`KvmRules`, with the version of Linux that
brought it, the one that gave it up, what it says, and where it stands. Rules are those of kvm_policy.md; a later
version of the same rule has a name of its own. To add one: its line here, its field in ``Policy`` of `mmu/mmu.pxd`, and
what goes by it, in the kernels, in `kvm/policy/` and in `reference/kvm/`.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, NamedTuple, get_args, get_type_hints

__all__ = ["KVM_VERSIONS", "TODAY", "KvmRule", "KvmRules", "kvm_rule", "kvm_rules"]

KVM_VERSIONS: dict[str, tuple[int, ...]] = {
    "slides": (2, 6, 26),
    "5.10": (5, 10),
    "6.1": (6, 1),
    "6.12": (6, 12),
}
"""The versions that there are: name -> version of Linux. That of the slides is the KVM of 2007 to 2009."""

TODAY = "6.1"
"""The one that stands for KVM of today where nobody names a version."""


class KvmRule(NamedTuple):
    """since: the first version of Linux that has it; until: the first that no longer has it, None: there is none."""

    since: tuple[int, ...]
    what: str
    source: str
    until: tuple[int, ...] | None = None

    def holds(self, version: tuple[int, ...]) -> bool:
        """A version of Linux has the rule."""
        return self.since <= version and (self.until is None or version < self.until)


def _since(version: str, what: str, source: str, *, until: str | None = None) -> KvmRule:
    return KvmRule(_numbers(version), what, source, None if until is None else _numbers(until))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


# fmt: off
class KvmRules(NamedTuple):
    """Which rules one version of KVM has, True or False each; module parameters may turn some of them off."""

    # ---- shadow tables -------------------------------------------------------------------------------------------
    unsync: Annotated[bool, _since(
        "2.6.28", "a guest's page table may be written unseen until the guest flushes",
        "kvm_unsync_page; kvm_policy.md §2.2")]
    flooding: Annotated[bool, _since(
        "3.3", "a table that is written three times without being used is forgotten",
        "detect_write_flooding; kvm_policy.md §2.2")]
    previous_roots: Annotated[bool, _since(
        "4.19", "three roots are kept besides the one in use",
        "KVM_MMU_NUM_PREV_ROOTS; kvm_policy.md §2.4")]
    shadow_pcid: Annotated[bool, _since(
        "4.19", "a shadowed guest may have PCIDs, which its roots are kept by",
        "kvm_mmu_new_pgd; kvm_policy.md §2.4")]
    invpcid_page: Annotated[bool, _since(
        "4.19", "INVPCID of one address invalidates that address alone",
        "kvm_handle_invpcid; tlb.md §4")]
    tracked_if_present: Annotated[bool, _since(
        "4.6", "a store to a shadowed table is emulated at once only where its page is mapped",
        "page_fault_handle_page_track; kvm_policy.md §2.1")]
    large_protected: Annotated[bool, _since(
        "3.16", "large entries over a page that becomes a shadowed table turn read-only; before, they go",
        "rmap_write_protect; kvm_policy.md §2.2")]
    invlpg_syncs_entry: Annotated[bool, _since(
        "6.4", "INVLPG and a #PF for the guest synchronize the one entry; before, they drop it and make it anew",
        "kvm_mmu_invalidate_addr; kvm_policy.md §14")]
    # ---- mappings ------------------------------------------------------------------------------------------------
    prefetch: Annotated[bool, _since(
        "2.6.37", "the aligned eight around a fault are mapped with it",
        "direct_pte_prefetch; kvm_policy.md §2.1")]
    prefetch_last_run: Annotated[bool, _since(
        "5.16", "of the direct map, also the run of empty entries that ends the aligned eight",
        "__direct_pte_prefetch; kvm_policy.md §14")]
    fast_faults: Annotated[bool, _since(
        "3.6", "a fault that only gives back a right takes no lock and no page of the host's",
        "fast_page_fault; kvm_policy.md §5")]
    mmio_caching: Annotated[bool, _since(
        "3.1", "an entry marks that no memory is there", "mark_mmio_spte; kvm_policy.md §4.4")]
    rewrite_stays_clean: Annotated[bool, _since(
        "5.16", "an entry made again that was writable gets no D: the processor sets it",
        "make_spte; kvm_policy.md §3.3")]
    loss_of_dirty_flushes: Annotated[bool, _since(
        "3.19", "an entry that loses D asks for a flush; before, only with the processor's log",
        "mmu_spte_update; kvm_policy.md §4.2")]
    access_tracking: Annotated[bool, _since(
        "4.11", "entries without A flags are aged by setting their rights aside; before, they go",
        "mark_spte_for_access_track; kvm_policy.md §6")]
    ksm_zaps: Annotated[bool, _since(
        "3.7", "where the host merges pages entries go; before, they were changed in place",
        "kvm_mmu_notifier_invalidate_range_start; kvm_policy.md §6")]
    nx_own_tables: Annotated[bool, _since(
        "6.2", "a large page stays away only from a table made because it must not be executable; before, from any",
        "disallowed_hugepage_adjust; kvm_policy.md §14")]
    # ---- dirty logs ----------------------------------------------------------------------------------------------
    manual_log_for_good: Annotated[bool, _since(
        "5.14", "a large entry under a log cleared by hand gets its right back by no fast fault",
        "kvm_arch_mmu_enable_log_dirty_pt_masked; kvm_policy.md §4.2")]
    eager_page_split: Annotated[bool, _since(
        "5.17", "the TDP MMU splits large pages when logging starts",
        "kvm_mmu_try_split_huge_pages; kvm_policy.md §4.2")]
    collapse_by_size: Annotated[bool, _since(
        "5.12", "at the end of logging small entries go where a large one could stand; before, wherever the host has a "
        "compound page, and with the TDP MMU large ones as well",
        "kvm_mmu_zap_collapsible_spte; kvm_policy.md §14")]
    # ---- processors, modes, the APIC -----------------------------------------------------------------------------
    flush_all_contexts: Annotated[bool, _since(
        "5.8", "a flush of all is INVEPT or INVVPID of all contexts; before, of its own",
        "vmx_flush_tlb_all; tlb.md §7")]
    flush_by_asid: Annotated[bool, _since(
        "2.6.38", "of AMD: a flush is TLB_CONTROL's, of one ASID, where the processor can; before, a new ASID",
        "svm_flush_tlb; tlb.md §11")]
    flush_by_address: Annotated[bool, _since(
        "4.19", "of AMD: INVLPG of a shadowed guest is INVLPGA of its ASID; before, a flush of all",
        "svm_flush_tlb_gva; tlb.md §11")]
    asids_above_sev: Annotated[bool, _since(
        "4.16", "of AMD: ASIDs of encrypted guests, the lowest, are not given to others",
        "svm_hardware_enable; tlb.md §11")]
    unrestricted_guest: Annotated[bool, _since(
        "2.6.32", "a guest over EPT that does not page runs as it is, where the processor can",
        "enable_unrestricted_guest; kvm_policy.md §3.4")]
    preemption_timer: Annotated[bool, _since(
        "4.8", "the guest's APIC timer is the VMX-preemption timer; before, a timer of the host's, which interrupts",
        "vmx_set_hv_timer; apic.md §2")]
    apic_page_with_apicv: Annotated[bool, _since(
        "5.16", "the APIC-access page is mapped with APICv alone; else each access is emulated, and leaves no mark",
        "kvm_faultin_pfn; kvm_policy.md §14")]
    apic_load_retried: Annotated[bool, _since(
        "3.3", "a load from the APIC's page that faults runs once more before it is emulated",
        "retry_instruction; kvm_policy.md §14", until="6.12")]
# fmt: on


_RULES = {name: get_args(hint)[1] for name, hint in get_type_hints(KvmRules, include_extras=True).items()}


def kvm_rule(name: str) -> KvmRule:
    """What a field of :class:`KvmRules` stands for. :raises KeyError: there is no such field."""
    rule: KvmRule = _RULES[name]
    return rule


@cache
def kvm_rules(version: str) -> KvmRules:
    """The rules of a version, a key of :data:`KVM_VERSIONS`. :raises KeyError: it is none."""
    linux = KVM_VERSIONS[version]
    return KvmRules(*(rule.holds(linux) for rule in _RULES.values()))
