"""vCPUs of one host side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.report.table import Cell, Column, number, render
from fastmmu.study.consolidate.threads import Threaded
from fastmmu.study.tpr.table import exits_by_cause

if TYPE_CHECKING:
    from fastmmu.study.consolidate.run import Consolidation

__all__ = ["host_table"]


_SHOOTDOWNS = {
    "shootdowns": "shootdowns", "shootdown_ipis": "IPIs for them",
    "shootdown_preempted": "of these to vCPUs without a CPU",
    "shootdown_marked": "vCPUs flushed by the VMM", "shootdown_lazy": "lazy ones left alone", "invlpgbs": "INVLPGB",
}  # fmt: skip


def _threads(found: Threaded) -> list[str]:
    """A line a process."""
    lines = []
    for process in sorted({thread.process for thread in found.threads}):
        inside = [thread for thread in found.threads if thread.process == process]
        moves = sum(thread.moves for thread in inside)
        lines.append(f"process {process}: {len(inside)} threads, {moves:,} moves between vCPUs")
    return lines


def host_table(found: Consolidation, *, width: int = 120, colour: bool = False) -> str:
    """A row a vCPU, of its APIC where it has one, and what the host did."""
    columns = [
        Column("vCPU", align="<"),
        Column("VPID"),
        Column("accesses"),
        Column("L1", "TLB misses"),
        Column("L2", "TLB misses"),
        Column("guest", "walk refs"),
        Column("EPT", "walk refs"),
        Column("VM exits"),
        Column("INVVPID"),
        Column("INVEPT"),
        Column("cycles/access"),
    ]
    table: list[list[Cell] | None] = []
    for i, (result, vpid) in enumerate(zip(found.results, found.vpids, strict=True)):
        c = result.counters
        counts = (
            c["accesses"],
            c["l1d_misses"] + c["l1i_misses"],
            c["tlb_misses"],
            c["guest_walk_refs"],
            c["ept_walk_refs"],
            c["vm_exits"],
            c["invvpid"],
            c["invept"],
        )
        cells = [Cell(number(count)) for count in counts]
        name = f"{i} {result.trace}{'' if result.complete else ' *'}"
        table.append([Cell(name), Cell(str(vpid)), *cells, Cell(f"{result.cycles_per_access:.2f}")])
    t = found.totals
    moved = f"{t['switches']:,} switches, {t['migrations']:,} migrations"
    flushed = f"{t['remote_flushes']:,} remote flushes: {t['flush_requests']:,} requests, {t['ipis']:,} IPIs"
    foot = ["", f"{len(found.tlbs)} physical CPUs: {moved}; {flushed}"]
    if any("sibling_misses" in tlb for tlb in found.tlbs):
        evictions = sum(result.counters["sibling_evictions"] for result in found.results)
        misses = sum(result.counters["sibling_misses"] for result in found.results)
        foot.append(f"hyperthreads of a core: {evictions:,} entries of another displaced, {misses:,} walks for such")
    sums = {name: sum(result.counters[name] for result in found.results) for name in _SHOOTDOWNS}
    if sums["shootdowns"] or sums["shootdown_lazy"]:
        foot.append(", ".join(f"{n:,} {_SHOOTDOWNS[name]}" for name, n in sums.items() if n))
    if isinstance(found, Threaded):
        foot += _threads(found)
    if found.unfinished:
        foot.append(f"{found.unfinished:,} events of the schedule came after the end of their program")
    if not all(result.complete for result in found.results):
        foot.append("* interrupted: figures of the part that was simulated")
    return "\n".join([*render(columns, table, width=width, colour=colour), *_interrupts(found, width, colour), *foot])


def _interrupts(found: Consolidation, width: int, colour: bool) -> list[str]:
    """Of vCPUs that have a local APIC: what they sent each other, and what that took."""
    columns = [Column("vCPU", align="<"), Column("TPR writes"), Column("exits of the APIC"), Column("timer")]
    columns += [Column("sent", "IPIs"), Column("no exit", "IPIs"), Column("kicks", "IPIs"), Column("posted", "IPIs")]
    columns += [Column("delivered", "interrupts"), Column("nested", "interrupts"), Column("latency", "interrupts")]
    names = ("tpr_writes", "timer", "ipis", "ipis_virtualized", "kicks", "notifications", "delivered", "nested")
    table: list[list[Cell] | None] = []
    for i, result in enumerate(found.results):
        c = result.counters
        if "apic_ipis" not in c:
            continue
        counts = [c[f"apic_{name}"] for name in names]
        counts.insert(1, sum(exits_by_cause(c).values()))
        latency = c["apic_latency"] / c["apic_delivered"] if c["apic_delivered"] else 0.0
        table.append([Cell(f"{i} {result.trace}"), *(Cell(number(n)) for n in counts), Cell(f"{latency:.1f}")])
    if not table:
        return []
    return [
        "",
        *render(columns, table, width=width, colour=colour),
        "latency in accesses of all vCPUs of the machine; one that stands still on its CPU does not wait",
    ]
