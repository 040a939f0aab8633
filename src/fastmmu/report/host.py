"""vCPUs of one host side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmmu.report.table import Cell, Column, number, render

if TYPE_CHECKING:
    from fastmmu.study.consolidate import Consolidation

__all__ = ["host_table"]


def host_table(found: Consolidation, *, colour: bool = False) -> str:
    """A row a vCPU, and what the host did."""
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
        table.append([Cell(f"{i} {result.trace}"), Cell(str(vpid)), *cells, Cell(f"{result.cycles_per_access:.2f}")])
    t = found.totals
    moved = f"{t['switches']:,} switches, {t['migrations']:,} migrations"
    flushed = f"{t['remote_flushes']:,} remote flushes: {t['flush_requests']:,} requests, {t['ipis']:,} IPIs"
    foot = ["", f"{len(found.tlbs)} physical CPUs: {moved}; {flushed}"]
    if found.unfinished:
        foot.append(f"{found.unfinished:,} events of the schedule came after the end of their program")
    return "\n".join(render(columns, table, colour=colour) + foot)
