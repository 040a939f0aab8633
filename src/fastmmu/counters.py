"""What is counted, each counter once: where the kernels keep it, what it means, what it costs, its column in a table.

    struct (cpu, guest, kvm, mmu, tlb) ── COUNTERS ── Machine.counters ── Result ── cost model, tables, files
    KvmStats, MmuCounters              ── STATS    ── Vmm.stats

To add a counter: a member of the struct of its room, and a row here; tests/project/test_counters.py asks for both.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

from fastmmu.counter_sums import Sum, reader, sums

__all__ = ["APIC", "CAUSES", "COUNTERS", "STATS", "Cost", "Counter", "Sum", "described", "reader", "sums"]


class Cost(NamedTuple):
    """What each of it costs: a price of `machine/costs.toml`, as SECTION.KEY, under a cause of ``Result.cycles_by``."""

    cause: str
    price: str
    only: str = ""  # "native": without a VMM; "vmm": with one, behind the exits


class Counter(NamedTuple):
    """One row.

    at: ROOM.MEMBER of a struct of that room, or a sum of such. doc: "" where that of the row before includes it.
    column: (heading, heading above) in the table that compares runs; rows with the same one are added up.
    """

    name: str
    at: str
    doc: str = ""
    cost: Cost | None = None
    column: tuple[str, str] | None = None


COUNTERS = (
    Counter(
        "accesses",
        "cpu.ops[0] + cpu.ops[1] + cpu.ops[2] + cpu.ops[3]",
        "accesses of the trace (reads + writes + modifies + fetches)",
        Cost("accesses", "access.trace"),
        ("accesses", ""),
    ),
    Counter("reads", "cpu.ops[0]"),
    Counter("writes", "cpu.ops[1]"),
    Counter("modifies", "cpu.ops[2]"),
    Counter("fetches", "cpu.ops[3]"),
    Counter("page_crossings", "cpu.page_crossings", "accesses that touched a second page"),
    Counter(
        "kernel_accesses",
        "cpu.kernel_accesses",
        "accesses of the guest kernel (page-table reads and writes, page clearing)",
        Cost("kernel", "access.kernel"),
    ),
    Counter("retries", "cpu.retries", "accesses made again after a fault or an exit"),
    Counter(
        "l1d_hits",
        "tlb.l1d_hits",
        "first-level TLB hits; every access, also of the kernel and each retry, is one lookup",
    ),
    Counter("l1i_hits", "tlb.l1i_hits"),
    Counter("l1d_misses", "tlb.l1d_misses", "its misses", column=("L1", "TLB misses")),
    Counter("l1i_misses", "tlb.l1i_misses", column=("L1", "TLB misses")),
    Counter(
        "stlb_hits",
        "tlb.stlb_hits",
        "second-level hits; misses of both levels, each of which is a walk",
        Cost("stlb", "tlb.stlb_hit"),
    ),
    Counter("tlb_misses", "cpu.tlb_misses", column=("L2", "TLB misses")),
    Counter("sibling_evictions", "tlb.sibling_evictions", "another hyperthread's entries displaced; walks for such"),
    Counter("sibling_misses", "tlb.sibling_misses"),
    Counter(
        "walks",
        "cpu.walks",
        "walks (misses, and hits whose cached rights or D flag did not suffice)",
        column=("walks", ""),
    ),
    Counter(
        "guest_walk_refs",
        "cpu.guest_walk_refs",
        "guest paging-structure entries read by walks (under shadow paging: shadow entries)",
        Cost("guest_walk", "walk.guest"),
        ("guest", "walk refs"),
    ),
    Counter(
        "ept_walk_refs",
        "cpu.ept_walk_refs",
        "EPT entries read by walks",
        Cost("ept_walk", "walk.ept"),
        ("EPT", "walk refs"),
    ),
    Counter(
        "walks_nested_0",
        "cpu.walks_nested[0]",
        "of agile paging: walks without a fault, by levels of the guest's own tables",
    ),
    *(Counter(f"walks_nested_{levels}", f"cpu.walks_nested[{levels}]") for levels in range(1, 6)),
    Counter(
        "agile_to_nested",
        "mmu.to_nested",
        "guest tables moved to nested mode, and back to shadow mode; entries set as these came back",
        column=("nested", "tables to"),
    ),
    Counter("agile_to_shadow", "mmu.to_shadow", column=("shadow", "tables to")),
    Counter("agile_refilled", "mmu.refilled", cost=Cost("refills", "host.refill", "vmm")),
    Counter("ad_writes", "cpu.ad_writes", "A and D flags written by walks", Cost("ad_writes", "walk.ad_write")),
    Counter("extension_reads", "tlb.extension_reads", "arrays extensions read", Cost("extensions", "extension.read")),
    Counter("extension_refs", "tlb.extension_refs", cost=Cost("extensions", "extension.reference")),
    Counter("background_refs", "tlb.background_refs", "of extensions, for which no access waits"),
    Counter(
        "guest_faults",
        "cpu.guest_faults",
        "#PF delivered to the guest",
        Cost("guest_faults", "guest.page_fault"),
        ("faults", "guest"),
    ),
    Counter("pages_touched", "guest.pages_touched", "pages that the guest kernel mapped for its programs"),
    Counter("collapses", "guest.collapses", "times that it made a 2 MB page of small ones"),
    Counter("thp_fault_alloc", "guest.thp_fault_alloc", "2 MB pages given at a first touch"),
    Counter("thp_fault_fallback", "guest.thp_fault_fallback", "2 MB pages not given, as none was free; collapses"),
    Counter("thp_collapse_alloc_failed", "guest.thp_collapse_alloc_failed"),
    Counter("thp_split_pmd", "guest.thp_split_pmd", "2 MB pages that a page table maps since a part of one changed"),
    Counter("khugepaged_pages_scanned", "guest.khugepaged_pages_scanned", "pages khugepaged looked at; its rounds"),
    Counter("khugepaged_full_scans", "guest.khugepaged_full_scans"),
    Counter("compact_stall", "guest.compact_stall", "compactions waited for; that made 2 MB, or not; pages moved"),
    Counter("compact_success", "guest.compact_success"),
    Counter("compact_fail", "guest.compact_fail"),
    Counter("pgmigrate_success", "guest.pgmigrate_success"),
    Counter("vm_exits", "cpu.vm_exits", "VM exits; exits_by_reason: dict of name -> number", column=("exits", "VM")),
    Counter("exits_by_reason", "cpu.exits_by_reason"),
    Counter("pf_fixed", "kvm.pf_fixed", "#PF under shadow paging: filled, the guest's, of a store to a page table"),
    Counter("pf_guest", "kvm.pf_guest"),
    Counter("pf_emulate", "kvm.pf_emulate"),
    Counter("pf_spurious", "kvm.pf_spurious", "#PF that had been dealt with meanwhile"),
    Counter("ept_build", "kvm.ept_build", "EPT violations that mapped a page; that had been dealt with meanwhile"),
    Counter("ept_spurious", "kvm.ept_spurious"),
    Counter("mmio", "kvm.mmio", "accesses without memory behind them"),
    Counter(
        "violations_build",
        "kvm.violations[1]",
        "EPT violations by class (``fastmmu.exits.FaultClass``); each has one, but for those that a Python policy "
        "handles itself, and EXIT events",
    ),
    Counter("violations_dirty", "kvm.violations[2]"),
    Counter("violations_mmio", "kvm.violations[3]"),
    Counter("violations_protected", "kvm.violations[4]"),
    Counter("violations_swapped_in", "kvm.violations[5]"),
    Counter("violations_spurious", "kvm.violations[6]"),
    Counter(
        "invvpid",
        "kvm.invvpid",
        "flushes that the VMM made; of AMD: asid_flushes, of all that an ASID has, invlpga, of one address",
        Cost("flushes", "flush.invvpid", "vmm"),
    ),
    Counter("invept", "kvm.invept", cost=Cost("flushes", "flush.invept", "vmm")),
    Counter("asid_flushes", "kvm.asid_flushes", cost=Cost("flushes", "flush.asid", "vmm")),
    Counter("invlpga", "kvm.invlpga", cost=Cost("flushes", "flush.invlpga", "vmm")),
    Counter(
        "asids_given",
        "kvm.asids",
        "ASIDs that vCPUs of AMD got; of these: the first of a generation, for which all were flushed",
    ),
    Counter("asid_generations", "kvm.asid_generations"),
    Counter(
        "host_accesses",
        "cpu.host_accesses",
        "of the host's own pages at VM exits (``exit_pages``), each a lookup; host_misses: of both levels, filled "
        "without a walk",
    ),
    Counter("host_misses", "cpu.host_misses"),
    Counter(
        "remote_flushes",
        "kvm.remote_flushes",
        "changes that other vCPUs of the machine had to flush for: flush_requests to them, ipis to those in guest mode",
    ),
    Counter("flush_requests", "kvm.flush_requests"),
    Counter("ipis", "kvm.ipis"),
    Counter(
        "remote_sent",
        "kvm.remote_sent",
        "of a vCPU: remote flushes that it asked others for, its IPIs for them, which it waits for; requests to it, of "
        "these by an IPI, which is a VM exit, and left to its next VM entry as it had no physical CPU",
        Cost("remote_flushes", "flush.remote", "vmm"),
    ),
    Counter("remote_ipis", "kvm.remote_ipis", cost=Cost("remote_flushes", "flush.remote_ipi", "vmm")),
    Counter("remote_asked", "kvm.remote_asked"),
    Counter("remote_kicked", "kvm.remote_kicked"),
    Counter("remote_deferred", "kvm.remote_deferred"),
    Counter(
        "cr3_switches", "cpu.cr3_switches", "events of the trace", Cost("context_switches", "guest.context_switch")
    ),
    Counter("invlpgs", "cpu.invlpgs", cost=Cost("invlpgs", "guest.invlpg")),
    Counter("invpcids", "cpu.invpcids"),
    Counter(
        "munmaps",
        "guest.munmaps",
        "ranges of pages that the guest kernel unmapped, and made read-only; processes made by fork; of read-only "
        "pages that were written: copied, as others share them, and given their right back",
    ),
    Counter("protects", "guest.protects"),
    Counter("forks", "guest.forks"),
    Counter("cow_copies", "guest.cow_copies"),
    Counter("write_rights", "guest.write_rights"),
    Counter(
        "cr3_flushes",
        "guest.cr3_flushes",
        "times that the guest kernel loaded CR3 anew, to flush; flushes that were due while a vCPU was in lazy mode, "
        "or had another process",
        Cost("shootdowns", "guest.cr3_flush"),
    ),
    Counter("late_flushes", "guest.late_flushes"),
    Counter(
        "shootdowns",
        "guest.shootdowns",
        "flushes of the guest kernel that other vCPUs had to make, too: interrupts sent to them, of these to vCPUs "
        "without a physical CPU, vCPUs that the VMM flushes at their VM entry, vCPUs in lazy mode, left alone; "
        "interrupts taken; of AMD: INVLPGB, TLBSYNC",
        Cost("shootdowns", "guest.shootdown"),
    ),
    Counter("shootdown_ipis", "guest.shootdown_ipis", cost=Cost("shootdowns", "guest.shootdown_ipi")),
    Counter("shootdown_preempted", "guest.shootdown_preempted", cost=Cost("shootdowns", "guest.shootdown_preempted")),
    Counter("shootdown_marked", "guest.shootdown_marked", cost=Cost("shootdowns", "guest.shootdown_mark")),
    Counter("shootdown_lazy", "guest.shootdown_lazy"),
    Counter("shootdown_interrupts", "guest.shootdown_interrupts", cost=Cost("shootdowns", "guest.interrupt")),
    Counter("invlpgbs", "guest.invlpgbs", cost=Cost("shootdowns", "guest.invlpgb")),
    Counter("tlbsyncs", "guest.tlbsyncs", cost=Cost("shootdowns", "guest.tlbsync")),
    Counter("unmaps", "guest.unmaps", cost=Cost("invlpgs", "guest.invlpg")),
    Counter("interrupts", "cpu.interrupts", cost=Cost("interrupts", "guest.interrupt")),
    Counter(
        "exit_instructions",
        "guest.exit_instructions",
        cost=Cost("exit_instructions", "guest.exit_instruction", "native"),
    ),
    Counter(
        "vmm_tables",
        "mmu.tables_made - mmu.tables_zapped",
        "table pages that the VMM holds at the end; those that it made; leaf entries that it set, that it cleared or "
        "reduced, and that it made read-only for a shadowed table",
    ),
    Counter("vmm_tables_made", "mmu.tables_made"),
    Counter("vmm_entries_filled", "mmu.entries_filled"),
    Counter("vmm_entries_zapped", "mmu.entries_zapped"),
    Counter("vmm_write_protected", "mmu.write_protected"),
    Counter("vmm_table_bytes", "4096 * (mmu.tables_made - mmu.tables_zapped)", "bytes of the tables at the end"),
    Counter("pf_fast", "kvm.pf_fast", "faults that gave back rights alone; begun anew as the host changed its pages"),
    Counter("pf_retry", "kvm.pf_retry"),
    Counter(
        "swap_ins",
        "mmu.swap_ins",
        "pages read back, taken away, and of these written to disk (``host_memory``)",
        Cost("swap_ins", "host.swap_in", "vmm"),
    ),
    Counter("swap_outs", "mmu.swap_outs", cost=Cost("swap_outs", "host.swap_out", "vmm")),
    Counter("swap_writes", "mmu.swap_writes", cost=Cost("swap_outs", "host.swap_write", "vmm")),
    Counter("aged_young", "mmu.aged_young", "answers to whether a page was used", Cost("ageing", "host.ask", "vmm")),
    Counter("aged_old", "mmu.aged_old", cost=Cost("ageing", "host.ask", "vmm")),
)
"""In the order of ``Result.counters``."""

APIC = (
    Counter("apic_reads", "apic.reads", "reads and writes of registers of the APIC; of the TPR"),
    Counter("apic_writes", "apic.writes"),
    Counter("apic_tpr_reads", "apic.tpr_reads"),
    Counter("apic_tpr_writes", "apic.tpr_writes"),
    Counter("apic_requested", "apic.requested", "interrupts requested, delivered, posted"),
    Counter("apic_delivered", "apic.delivered"),
    Counter("apic_posted", "apic.posted"),
    Counter("apic_latency", "apic.latency", "their latency in accesses: sum, maximum"),
    Counter("apic_latency_max", "apic.latency_max"),
    Counter(
        "apic_spurious",
        "apic.spurious",
        "threshold exits that could inject nothing; of these: an interrupt in service is in the way, RFLAGS.IF is 0",
    ),
    Counter("apic_spurious_in_service", "apic.spurious_in_service"),
    Counter("apic_spurious_if", "apic.spurious_if"),
    Counter("apic_emulated", "apic.emulated", "accesses emulated"),
    Counter("apic_patched", "apic.patched", "sites patched, polls of the replacements"),
    Counter("apic_polls", "apic.polls"),
    Counter("apic_nested", "apic.nested", "handlers that interrupted another"),
    Counter("apic_timer", "apic.timer", "expiries of the timer"),
    Counter("apic_ipis", "apic.ipis", "interprocessor interrupts that it sent; of these: without an exit, no vectors"),
    Counter("apic_ipis_virtualized", "apic.ipis_virtualized"),
    Counter("apic_ipis_other", "apic.ipis_other"),
    Counter("apic_kicks", "apic.kicks", "vCPUs that these made exit"),
    Counter("apic_notifications", "apic.notifications", "posted-interrupt notifications that it sent"),
)
"""Of a guest with a local APIC (``Config.tpr``)."""

STATS = (
    Counter("exits", "run.vm_exits"),
    Counter("pf_taken", "stats.pf_taken"),
    Counter("pf_fixed", "stats.pf_fixed"),
    Counter("pf_emulate", "stats.pf_emulate"),
    Counter("pf_spurious", "run.pf_spurious + run.ept_spurious"),
    Counter("pf_fast", "mmu.fast + mmu.fast_spurious"),
    Counter("pf_guest", "run.pf_guest"),
    Counter("pf_mmio_spte_created", "mmu.mmio_marked"),
    Counter("tlb_flush", "stats.tlb_flush"),
    Counter("remote_tlb_flush", "run.remote_flushes"),
    Counter("remote_tlb_flush_requests", "mmu.flush_requests"),
    Counter("invlpg", "exits.invlpg"),
    Counter("insn_emulation", "stats.insn_emulation"),
    Counter("mmio_exits", "stats.mmio_exits"),
    Counter("io_exits", "exits.io_instruction"),
    Counter("irq_window_exits", "exits.interrupt_window"),
    Counter("mmu_pte_write", "mmu.pte_writes"),
    Counter("mmu_pde_zapped", "mmu.pde_zapped"),
    Counter("mmu_flooded", "mmu.flooded"),
    Counter("mmu_recycled", "mmu.recycled"),
    Counter("mmu_unsync", "mmu.unsync"),
    Counter("mmu_cache_miss", "mmu.shadow * (mmu.tables_made + mmu.roots_emptied - stats.tables_early)"),
    Counter("mmu_shadow_zapped", "mmu.shadow * mmu.zaps"),
    Counter("pages_4k", "mmu.pages[0]"),
    Counter("pages_2m", "mmu.pages[1]"),
    Counter("pages_1g", "mmu.pages[2]"),
    Counter("nx_lpage_splits", "mmu.nx_lpage_splits"),
    Counter("max_mmu_rmap_size", "mmu.max_mmu_rmap_size"),
    Counter("dirty_pages", "mmu.logged"),
    Counter("pml_full", "exits.pml_full"),
    Counter("shadow_bytes", "run.vmm_table_bytes"),
)
"""KVM's statistics (kvm_policy.md §12). stats: KvmStats; run: by the names of COUNTERS; exits: by reason; mmu.shadow:
0 of the TDP MMU, whose table pages KVM does not count there, else 1."""

CAUSES = {
    "accesses": "accesses",
    "kernel": "guest kernel's accesses",
    "stlb": "second-level TLB hits",
    "guest_walk": "references to guest tables",
    "ept_walk": "references to the EPT",
    "ad_writes": "accessed and dirty flags",
    "extensions": "extensions of the TLB",
    "guest_faults": "guest page faults",
    "context_switches": "context switches",
    "exit_instructions": "instructions that exit under VMX",
    "invlpgs": "guest INVLPG",
    "interrupts": "guest interrupts",
    "shootdowns": "guest TLB shootdowns",
    "flushes": "flushes of the VMM",
    "remote_flushes": "the VMM's remote flushes",
    "swap_ins": "pages read from disk",
    "swap_outs": "pages put to disk",
    "refills": "shadow tables that come back",
    "ageing": "questions whether pages are in use",
}
"""Causes of cost, for people."""


def described(rows: Iterable[Counter], indent: int) -> str:
    """Names and meaning of the rows as a table of reStructuredText."""
    groups: list[tuple[list[str], str]] = []
    for row in rows:
        if row.doc or not groups:
            groups.append(([], row.doc))
        groups[-1][0].append(row.name)
    rule = f"{'=' * 25}  {'=' * 75}"
    lines = [rule]
    for names, doc in groups:
        left, right = textwrap.wrap(", ".join(names), 25, break_long_words=False), textwrap.wrap(doc, 75)
        lines += [f"{a:25}  {b}".rstrip() for a, b in itertools.zip_longest(left, right, fillvalue="")]
    return textwrap.indent("\n".join([*lines, rule]), " " * indent).lstrip()
