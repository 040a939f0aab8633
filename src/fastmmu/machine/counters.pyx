"""Counters of a run, by name."""

from fastmmu.cpu.vcpu cimport Counters
from fastmmu.kvm.kvm cimport Kvm
from fastmmu.tlb.lookup cimport L1D, L1I, L1S, L2, L2I, TlbCounters

from fastmmu.exits import N_REASONS, ExitReason

# exit reasons without a name come from EXIT events only
_REASONS = [{int(r): r.name.lower() for r in ExitReason}.get(i, f"reason_{i}") for i in range(N_REASONS)]


cdef dict counters_of(Counters *c, TlbCounters *t, Kvm *kvm):
    # by the names that results have; of a machine without an APIC
    l1i = t.lookups[L1I] - t.misses[L1I]
    l1d = t.lookups[L1D] + t.lookups[L1S] - t.misses[L1D] - t.misses[L1S]
    return {
        "accesses": c.ops[0] + c.ops[1] + c.ops[2] + c.ops[3],
        "reads": c.ops[0], "writes": c.ops[1], "modifies": c.ops[2], "fetches": c.ops[3],
        "page_crossings": c.page_crossings, "kernel_accesses": c.kernel_accesses, "retries": c.retries,
        "l1d_hits": l1d, "l1i_hits": l1i,
        "l1d_misses": t.misses[L1D] + t.misses[L1S], "l1i_misses": t.misses[L1I],
        "stlb_hits": sum(t.hits[L2]) + sum(t.hits[L2I]), "tlb_misses": c.tlb_misses,
        "walks": c.walks, "guest_walk_refs": c.guest_walk_refs, "ept_walk_refs": c.ept_walk_refs,
        "ad_writes": c.ad_writes, "guest_faults": c.guest_faults, "pages_touched": c.pages_touched,
        "collapses": c.collapses, "vm_exits": c.vm_exits,
        "exits_by_reason": {_REASONS[i]: c.exits[i] for i in range(N_REASONS) if c.exits[i]},
        "pf_fixed": c.pf_fixed, "pf_guest": c.pf_guest, "pf_emulate": c.pf_emulate, "pf_spurious": c.pf_spurious,
        "ept_build": c.ept_build, "ept_spurious": c.ept_spurious, "mmio": c.mmio,
        "invvpid": c.invvpid, "invept": c.invept, "host_accesses": c.host_accesses, "host_misses": c.host_misses,
        "remote_flushes": kvm.remote_flushes, "flush_requests": kvm.flush_requests,
        "ipis": kvm.ipis, "cr3_switches": c.cr3_switches, "invlpgs": c.invlpgs,
        "invpcids": c.invpcids, "unmaps": c.unmaps, "interrupts": c.interrupts,
        "exit_instructions": c.exit_instructions,
        "vmm_tables": kvm.mmu.counters.tables_made - kvm.mmu.counters.tables_zapped,
        "vmm_tables_made": kvm.mmu.counters.tables_made,
        "vmm_entries_filled": kvm.mmu.counters.entries_filled,
        "vmm_entries_zapped": kvm.mmu.counters.entries_zapped,
        "vmm_write_protected": kvm.mmu.counters.write_protected,
        "vmm_table_bytes": 4096 * (kvm.mmu.counters.tables_made - kvm.mmu.counters.tables_zapped),
        "pf_fast": kvm.mmu.counters.fast, "pf_retry": kvm.mmu.counters.retries,
        "swap_ins": kvm.mmu.counters.swap_ins, "swap_outs": kvm.mmu.counters.swap_outs,
        "swap_writes": kvm.mmu.counters.swap_writes, "aged_young": kvm.mmu.counters.aged_young,
        "aged_old": kvm.mmu.counters.aged_old,
    }
