"""The ways of handling the TPR side by side: rows, a table, a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fastmmu.machine.config import Config
from fastmmu.machine.result import Result
from fastmmu.report.figure import bars, narrow, picture
from fastmmu.report.rows import baseline, by_trace, of_one_run
from fastmmu.report.table import Cell, Column, number, render

__all__ = ["exits_by_cause", "tpr_plot", "tpr_rows", "tpr_table", "way_name"]

BELOW = "TPR below threshold"
EXITS = {
    "emulated page accesses": ("ept_violation", "ept_misconfig", "npf", "exception_nmi"),
    "APIC access": ("apic_access",),
    "APIC write": ("apic_write",),
    "CR8, MSR": ("cr_access", "rdmsr", "wrmsr"),
    BELOW: ("tpr_below_threshold",),
    "polls": ("vmcall",),
    "interrupt window": ("interrupt_window",),
    "virtualized EOI": ("virtualized_eoi",),
    "external interrupt": ("external_interrupt",),
    "preemption timer": ("preemption_timer",),
}
"""Cause -> exit reasons. Of the first only those that emulated an access to the APIC's page count."""


def way_name(config: Config) -> str:
    """What a row is called."""
    if config.mmu == "native":
        return "native"
    slides = "-slides" if config.tpr == "flexpriority" and config.tpr_threshold == "slides" else ""
    return f"{config.tpr}{slides}"


def exits_by_cause(counters: Mapping[str, Any]) -> dict[str, int]:
    """VM exits of a guest with an APIC: cause -> number, in the order of :data:`EXITS`."""
    exits = counters["exits_by_reason"]
    found = {cause: sum(exits.get(reason, 0) for reason in reasons) for cause, reasons in EXITS.items()}
    # what the VMM emulated beside the exits that say so themselves came by the page
    by_name = found["APIC access"] + found["CR8, MSR"]
    found["emulated page accesses"] = max(counters["apic_emulated"] - by_name, 0)
    return found


def _causes(result: Result) -> dict[str, int]:
    return exits_by_cause(result.counters)


def tpr_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One flat dict a way.

    Keys: trace, path, content, way, mmu, accesses, tpr_reads, tpr_writes, interrupts, latency (mean accesses from
    arrival to delivery), latency_max, ipis (sent), ipis_virtualized (of these without an exit), timer (expiries),
    exits_… by cause, exits (their sum), threshold_saved (threshold exits that KVM's rule saves against the slides',
    where both are among the ways), spurious (threshold exits that could inject nothing), patched, cycles,
    cycles_per_access, added (cycles per access beyond the native row, where there is one), geometry, costs.
    """
    rows = []
    for result in results:
        native = baseline(result, results)
        below = {way_name(r.config): _causes(r)[BELOW] for r in results if of_one_run(r) == of_one_run(result)}
        counters, causes = result.counters, _causes(result)
        delivered = counters["apic_delivered"]
        rows.append(
            {
                **result.origin.columns(),
                "way": way_name(result.config),
                "mmu": result.config.mmu,
                "accesses": counters["accesses"],
                "tpr_reads": counters["apic_tpr_reads"],
                "tpr_writes": counters["apic_tpr_writes"],
                "interrupts": delivered,
                "latency": counters["apic_latency"] / delivered if delivered else 0.0,
                "latency_max": counters["apic_latency_max"],
                "ipis": counters["apic_ipis"],
                "ipis_virtualized": counters["apic_ipis_virtualized"],
                "timer": counters["apic_timer"],
                **{f"exits_{cause.replace(', ', '_').replace(' ', '_').lower()}": n for cause, n in causes.items()},
                "exits": sum(causes.values()),
                "threshold_saved": below["flexpriority-slides"] - causes[BELOW]
                if way_name(result.config) == "flexpriority" and "flexpriority-slides" in below
                else None,
                "spurious": counters["apic_spurious"],
                "patched": counters["apic_patched"],
                "cycles": result.cycles,
                "cycles_per_access": result.cycles_per_access,
                "added": result.cycles_per_access - native.cycles_per_access if native else None,
                **result.origin.made_with(),
            }
        )
    return rows


def tpr_table(results: Sequence[Result], *, width: int = 120, colour: bool = False) -> str:
    """Exits by cause, spurious ones, interrupts and their latency, cycles; the share of exits that each way saves."""
    if len(traces := by_trace(results)) > 1:
        return "\n\n".join(tpr_table(one, width=width, colour=colour) for one in traces)
    rows = tpr_rows(results)
    shown = [cause for cause in EXITS if any(_causes(result)[cause] for result in results)]
    columns = [Column("TPR", align="<"), Column("in all", "exits of the APIC")]
    columns += [Column(cause, "exits of the APIC") for cause in shown]
    columns += [Column("spurious"), Column("delivered", "interrupts"), Column("latency", "interrupts")]
    columns += [Column("sent", "IPIs"), Column("no exit", "IPIs")]
    columns += [Column("access", "cycles/")]
    table: list[list[Cell] | None] = []
    for result, row in zip(results, rows, strict=True):
        causes = _causes(result)
        cells = [Cell(row["way"], "bold"), Cell(number(row["exits"]))]
        cells += [Cell(number(causes[cause]), "" if causes[cause] else "dim") for cause in shown]
        cells += [Cell(number(row["spurious"])), Cell(number(row["interrupts"])), Cell(f"{row['latency']:.2f}")]
        cells += [Cell(number(row["ipis"])), Cell(number(row["ipis_virtualized"]))]
        table.append([*cells, Cell(f"{row['cycles_per_access']:.2f}", "bold")])
    first = rows[0]
    head = f"{first['trace']}: {first['accesses']:,} accesses, {first['tpr_writes']:,} writes and "
    lines = [f"{head}{first['tpr_reads']:,} reads of the TPR; latency in accesses", ""]
    lines += render(columns, table, width=width, colour=colour)
    trap = next((row for row in rows if row["way"] == "trap"), None)
    if trap is not None and trap["exits"]:
        saved = [
            f"{row['way']} {1 - row['exits'] / trap['exits']:.1%}"
            for row in rows
            if row["way"] not in ("trap", "native")
        ]
        lines += ["", f"Exits of trapping that the others save: {', '.join(saved)}"] if saved else []
    for row, result in zip(rows, results, strict=True):
        if row["threshold_saved"] is not None:
            saved_of = row["threshold_saved"] + _causes(result)[BELOW]
            lines.append(
                f"Threshold exits that KVM's rule saves: {row['threshold_saved']:,} of the slides' {saved_of:,}"
            )
    return "\n".join(lines)


def tpr_plot(results: Sequence[Result], path: str | os.PathLike[str]) -> None:
    """Draw the exits by cause and the cycles of each way into a file: a row of axes a trace.

    :param results: those of a trace one after the other. :raises ConfigError: the suffix is none of png, svg, pdf.
    :raises MissingExtraError: matplotlib is not installed.
    """
    traces: list[list[Result]] = []
    for result in results:
        last = traces[-1] if traces else []
        if not last or last[0].trace != result.trace or way_name(result.config) in {way_name(r.config) for r in last}:
            traces.append([])
        traces[-1].append(result)
    columns = 1 if narrow() else 2
    with picture(path, (6 * columns, 2.9 * len(traces) * 2 / columns)) as figure:
        places = iter(figure.subplots(2 * len(traces) // columns, columns, squeeze=False).flat)
        for found in traces:
            _draw(next(places), next(places), found)


def _draw(exits: Any, cycles: Any, results: Sequence[Result]) -> None:
    rows = tpr_rows(results)
    names = [each["way"] for each in rows]
    causes = [(cause, [_causes(result)[cause] for result in results]) for cause in EXITS]
    bars(exits, names, [(cause, values) for cause, values in causes if any(values)], unit="VM exits")
    exits.set_title(f"{rows[0]['trace']}: exits of the APIC")
    exits.legend(fontsize="small", loc="lower right", framealpha=0.8, edgecolor="none")
    values = [each["cycles_per_access"] for each in rows]
    bars(cycles, names, [("cycles", values)], unit="modelled cycles of an access", shown="{:.2f}".format)
    cycles.set_title("what an access costs")
