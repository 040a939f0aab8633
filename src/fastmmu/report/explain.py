"""What the TLB did in each run: hits by structure and page size, what was invalidated by what, and what that cost."""

from __future__ import annotations

from collections.abc import Sequence

from fastmmu._checked import checked
from fastmmu.machine.result import Result
from fastmmu.report.latency import levels_table
from fastmmu.report.rows import several_versions
from fastmmu.report.table import Cell, Column, number, paint, render

__all__ = ["explain"]

UNITS = {
    "l1i": "L1 fetches",
    "l1d": "L1 data",
    "l1s": "L1 stores",
    "l2i": "L2 fetches",
    "l2": "L2",
    "gpm": "guest-physical",
    "psc": "paging structures",
    "epsc": "EPT structures",
}
CAUSES = {
    "cr3": "CR3 write",
    "cr0": "CR0.PG",
    "cr4": "CR4",
    "invlpg": "INVLPG",
    "transition": "VM entry and exit",
    "vmfunc": "VMFUNC",
    "page_fault": "page fault",
    "ept_violation": "EPT violation",
    "rewalk": "walked again",
    "contexts": "out of tags",
}
_NOTE = """\
Entries invalidated by a flush, by structure; refills: walks for a translation that it took. "walked again": rights or a
dirty flag did not suffice."""


@checked
def explain(results: Sequence[Result], *, width: int = 120, colour: bool = False) -> str:
    """The counters of tlb.md §8 as text, for each run; with data caches, where references were found.

    :param results: with ``tlb`` counters, as :func:`fastmmu.simulate` gives them. :param width: characters of a line.
        :param colour: with ANSI escapes.
    """
    lines: list[str] = []
    for result in results:
        if not result.tlb:
            continue
        pages = f", pages {result.config.pages}" if len({other.config.pages for other in results}) > 1 else ""
        version = f", KVM {result.config.kvm}" if several_versions(results) and result.config.mmu != "native" else ""
        lines += ["", paint(f"TLB of {result.config.name}{pages}{version}", "bold", colour), ""]
        lines += [*_structures(result, width, colour), "", *_causes(result, width, colour)]
        if result.tlb["survivals"]:
            exits = 2 * result.counters["vm_exits"]
            each = f", {result.tlb['survivals'] / exits:.0f} each" if exits else ""
            lines.append(f"Entries that lived through VM entries and exits: {number(result.tlb['survivals'])}{each}")
        if result.caches is not None:
            lines += ["", *levels_table(result, width=width, colour=colour)]
    return "\n".join([*lines, "", _NOTE]) if lines else ""


def _structures(result: Result, width: int, colour: bool) -> list[str]:
    columns = [Column("structure", align="<"), Column("lookups"), Column("misses"), Column("rate")]
    columns += [Column(size, "hits by size, level") for size in ("4k", "2m", "1g")]
    columns += [Column("fills"), Column("evicted")]
    rows: list[list[Cell] | None] = []
    for unit, title in UNITS.items():
        c = result.tlb[unit]
        if not c["lookups"]:
            continue
        rate = f"{c['misses'] / c['lookups']:.2%}"
        hits = list(c["hits"].items())
        if unit in ("psc", "epsc"):
            named = [Cell(f"{number(n)} {level}" if n else "", "") for level, n in hits[:3]]
        else:
            named = [_count(n) for _, n in hits[:3]]
        rows.append([Cell(title), _count(c["lookups"]), _count(c["misses"]), Cell(rate), *named, _count(c["fills"]),
                     _count(c["evictions"])])  # fmt: skip
    return render(columns, rows, width=width, colour=colour)


def _causes(result: Result, width: int, colour: bool) -> list[str]:
    by = result.tlb["invalidated"]
    units = [unit for unit in UNITS if any(found.get(unit) for found in by.values())]
    columns = [Column("invalidated by", align="<"), Column("times")]
    columns += [Column(unit, "entries") for unit in units] + [Column("refills")]
    rows: list[list[Cell] | None] = [
        [Cell(_cause(cause)), _count(times), *(_count(by.get(cause, {}).get(unit, 0)) for unit in units),
         _count(result.tlb["refill_misses"].get(cause, 0))]
        for cause, times in result.tlb["flushes"].items()
    ]  # fmt: skip
    return render(columns, rows, width=width, colour=colour) if rows else ["Nothing was invalidated."]


def _cause(cause: str) -> str:
    return CAUSES.get(cause) or cause.upper().replace("_", " type ")


def _count(n: int) -> Cell:
    return Cell(number(n), "" if n else "dim")
