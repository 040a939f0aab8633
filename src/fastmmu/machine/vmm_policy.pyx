"""What a machine's KVM does of its own choice, from the configuration."""

from fastmmu.kvm.kvm cimport Kvm
from fastmmu.mmu.memslots cimport slots_order
from fastmmu.mmu.mmu cimport AGE_OLD, AGE_TRACK, AGE_ZAP, Policy

from fastmmu.errors import OutOfMemoryError
from fastmmu.sizes import parse_bytes


cdef int policy_choose(Kvm *kvm, config, int maxphyaddr) except -1:
    cdef Policy *p = &kvm.mmu.policy
    rules = config.rules
    p.unsync = rules.unsync if config.unsync is None else config.unsync
    p.flooding, p.previous_roots, p.invpcid_page = rules.flooding, rules.previous_roots, rules.invpcid_page
    p.tracked_if_present, p.large_protected = rules.tracked_if_present, rules.large_protected
    p.invlpg_syncs_entry = rules.invlpg_syncs_entry
    p.prefetch, p.prefetch_last_run = rules.prefetch, rules.prefetch_last_run
    p.fast = rules.fast_faults and config.mmu == "ept"
    # an address bit must be reserved in shadow entries (kvm_mmu_reset_all_pte_masks)
    p.mmio_caching = rules.mmio_caching and config.mmio_caching and (config.mmu == "ept" or maxphyaddr < 52)
    p.rewrite_stays_clean, p.ksm_zaps = rules.rewrite_stays_clean, rules.ksm_zaps
    p.loss_of_dirty_flushes, p.nx_own_tables = rules.loss_of_dirty_flushes, rules.nx_own_tables
    p.apic_load_retried = rules.apic_load_retried
    p.manual_log_for_good, p.collapse_by_size = rules.manual_log_for_good, rules.collapse_by_size
    p.flush_all_contexts = rules.flush_all_contexts
    kvm.flush_by_asid = rules.flush_by_asid and config.flush_by_asid
    kvm.flush_by_address = rules.flush_by_address
    p.eager_split = rules.eager_page_split and config.eager_page_split
    p.tdp = config.mmu == "ept" and config.tdp_mmu
    p.nx_huge = config.nx_huge_pages
    p.pml = config.pml
    p.limit = config.table_pages
    p.ageing = {"track": AGE_TRACK, "zap": AGE_ZAP, "old": AGE_OLD,
                None: AGE_TRACK if rules.access_tracking else AGE_ZAP}[config.ageing]
    if config.host_memory is not None:
        if config.host_reclaim == "lru" and slots_order(&kvm.mmu.slots):
            raise OutOfMemoryError("no memory for the order of use of the host's pages; make the memory smaller")
        kvm.mmu.slots.limit = max(16, parse_bytes(config.host_memory) >> 12)
    return 0
