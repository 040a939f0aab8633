"""A system trace under every scheme, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastmmu.report.table import Cell, Column, number, render

if TYPE_CHECKING:
    from fastmmu.study.replay.run import Ran

__all__ = ["schemes_table"]

REASONS = {
    "exception_nmi": "#PF",
    "cr_access": "CR",
    "invlpg": "INVLPG",
    "invpcid": "INVPCID",
    "ept_violation": "EPT",
    "npf": "NPF",
    "pml_full": "PML",
    "external_interrupt": "INTR",
}
"""Exit reason → heading of its column; a reason of no run has none."""


def schemes_table(found: Sequence[Ran], *, name: str = "", width: int = 120, colour: bool = False) -> str:
    """A row a scheme: TLB misses, VM exits by reason, pages in dirty logs, mismatches with the trace; of
    several CPUs uses by what the CPU may still hold, pages that logs left out, seconds, million accesses a second.

    :param name: of the trace.
    """
    taken = [reason for reason in REASONS if any(r.counters.get("exits_by_reason", {}).get(reason) for r in found)]
    logs = any(r.logged is not None for r in found)
    several = any(r.found is not None and r.found.cpus > 1 for r in found)
    columns = [Column("scheme", align="<"), Column("TLB misses"), Column("walk refs"), Column("exits", "VM")]
    columns += [Column(REASONS[reason], "by reason") for reason in taken]
    columns += [Column("VMM tables"), *([Column("logged")] if logs else [])]
    columns += [Column("missed")] * (several and logs)
    columns += [Column("held", "uses by"), Column("neither", "uses by")] * several
    columns += [Column("mismatches")]
    columns += [Column("seconds"), Column("M/s")] * several
    rows: list[list[Cell] | None] = []
    for ran in found:
        if ran.found is None:
            continue
        c = ran.counters
        row = [Cell(ran.scheme), Cell(number(c["tlb_misses"])), Cell(number(c["guest_walk_refs"] + c["ept_walk_refs"]))]
        row.append(Cell(number(c["vm_exits"])))
        row += [Cell(number(c["exits_by_reason"].get(reason, 0))) for reason in taken]
        row.append(Cell(number(c["vmm_tables"])))
        if logs:
            row.append(Cell("" if ran.logged is None else number(ran.logged)))
        if several and logs:
            row.append(Cell("" if ran.missed is None else number(ran.missed), "red" if ran.missed else ""))
        if several:
            row += [Cell(number(ran.found.held)), Cell(number(ran.found.neither))]
        row.append(Cell(str(ran.found.wrong), "red" if ran.found.wrong else "green"))
        if several:
            rate = ran.found.accesses / ran.found.seconds / 1e6 if ran.found.seconds else 0.0
            row += [Cell(f"{ran.found.seconds:.2f}"), Cell(f"{rate:.1f}")]
        rows.append(row)
    ran_first = next((ran.found for ran in found if ran.found is not None), None)
    head = []
    if ran_first is not None:
        done = f"{ran_first.accesses:,} accesses, {ran_first.page_faults:,} page faults, {ran_first.table_stores:,}"
        of = f"{ran_first.cpus} CPUs, {ran_first.ipis:,} IPIs, " if several else ""
        head = [f"{name}: {of}{done} stores to page tables; {ran_first.entries or 0:,} entries compared at the end", ""]
    notes = [f"{ran.scheme}: {ran.why}" for ran in found if ran.why]
    return "\n".join([*head, *(render(columns, rows, width=width, colour=colour) if rows else []), *notes, ""])
