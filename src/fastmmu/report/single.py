"""One run with all its counters."""

from __future__ import annotations

from collections.abc import Sequence

from fastmmu._checked import checked
from fastmmu.machine.costs import exits_by_class
from fastmmu.machine.result import Result
from fastmmu.report.table import Cell, Column, paint, render
from fastmmu.report.words import cause_name, reason_title, settings, structure_name

__all__ = ["single"]


@checked
def single(result: Result, *, width: int = 120, colour: bool = False) -> str:
    """Counters, exits by reason, and modelled cycles by cause, as text.

    :param width: characters of a line. :param colour: with ANSI escapes.
    """
    counters = result.counters
    head = f"{result.trace or 'trace'}, {result.config.name}, pages {result.config.pages}; {settings(result)}"
    lines = [paint(head, "bold", colour)]
    if result.first:
        lines.append(f"counted after the first {result.first:,} accesses")
    if not result.complete:
        lines.append("interrupted: figures of the part that was simulated")
    lines += ["", *_block("counters", {k: v for k, v in counters.items() if not isinstance(v, dict)}, width, colour)]
    lines += _rates(result, colour)
    reasons = {f"{k} ({reason_title(k, result.config.vendor)})": n for k, n in counters["exits_by_reason"].items() if n}
    if reasons:
        lines += ["", *_block("VM exits by reason", reasons, width, colour)]
    kinds = {cause_name(f"exit:{kind}", mmu=result.config.mmu): n for kind, n in exits_by_class(counters).items()}
    if kinds:
        lines += ["", *_block("VM exits by what the VMM did", kinds, width, colour)]
    lines += ["", *_cycles(result, width, colour)]
    lines += [
        "",
        f"simulated in {result.seconds:.2f} s: {result.accesses_per_second / 1e6:.1f} million accesses a second",
    ]
    return "\n".join([*lines, *result.notes])


def _rates(result: Result, colour: bool) -> list[str]:
    """Per thousand instructions; nothing where they are not counted."""
    misses, many, share = result.mpki_by, result.pki, result.walk_share
    if misses is None or many is None:
        return []
    rows = {f"{structure_name(name)} misses (MPKI)": value for name, value in misses.items()}
    rows |= {_PKI[name]: value for name, value in many.items()}
    names, room = max(map(len, rows)), max(len(f"{value:,.3f}") for value in rows.values())
    lines = ["", paint("per thousand instructions", "bold", colour)]
    lines += [f"  {name:{names}}  {value:>{room},.3f}" for name, value in rows.items()]
    if share is not None:
        lines.append(f"share of the run time that waits for walks, {result.overlap:.0%} hidden: about {share:.1%}")
    return lines


_PKI = {
    "walks": "walks",
    "walk_refs": "references of walks",
    "walk_cycles": "cycles of walks (CPKI)",
    "vm_exits": "VM exits",
}


def _block(title: str, numbers: dict[str, int], width: int, colour: bool) -> list[str]:
    names = max(len(name) for name in numbers)
    room = _room([f"{n:,}" for n in numbers.values()], width - names - 4)
    return [paint(title, "bold", colour), *(f"  {name:{names}}  {n:>{room},}" for name, n in numbers.items())]


def _room(texts: Sequence[str], most: int) -> int:
    """Characters of a column of numbers: 20, fewer where a line has no more, but as many as there must be."""
    return max(max(map(len, texts)), min(20, most))


def _cycles(result: Result, width: int, colour: bool) -> list[str]:
    accesses = result.counters["accesses"] or 1
    names = {cause: cause_name(cause, mmu=result.config.mmu) for cause in result.cycles_by}
    longest = max([len("modelled cycles") - 2, *map(len, names.values())])
    room = _room(["cycles", f"{result.cycles:,.0f}"], width - longest - 24)
    columns = [Column("modelled cycles", align="<"), Column("cycles"), Column("an access"), Column("share")]
    values = sorted(result.cycles_by.items(), key=lambda item: -item[1])
    whole = result.cycles or 1.0
    rows = [
        [f"  {names[cause]}", f"{value:,.0f}", f"{value / accesses:.3f}", f"{value / whole:.1%}"]
        for cause, value in values
    ]
    rows.append(["  all", f"{result.cycles:,.0f}", f"{result.cycles_per_access:.3f}", ""])
    if longest + room + 24 > width:
        return render(columns, [[Cell(text) for text in row] for row in rows], width=width, colour=colour)
    lines = [f"{a:{longest + 2}}  {b:>{room}}  {c:>10}  {d:>6}".rstrip() for a, b, c, d in
             ([column.title for column in columns], *rows)]  # fmt: skip
    return [paint(lines[0], "bold", colour), *lines[1:]]
