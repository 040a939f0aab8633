"""A walk as a picture: guest levels downwards, EPT levels to the right.

gPML4E   gpa ─▸ 1 EPT PML4E ─▸ 2 EPT PDPTE ─▸ 3 EPT PDE ─▸ 4 EPT PTE ─▸ 5 hpa of the gPML4E, its value
          ╭──────────────────────────────────────────────────────────────╯
gPDPTE   gpa ─▸ 6 ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fastmmu.dtypes import Fault, StepKind
from fastmmu.report.bits import entry_name, ept_flags, guest_flags
from fastmmu.report.outcome import Walk
from fastmmu.report.table import Cell, Column, paint, render

__all__ = ["picture", "steps"]

_ARROW = " ─▸ "
_STOPPED = {
    Fault.PAGE_FAULT: "#PF",
    Fault.EPT_VIOLATION: "EPT violation",
    Fault.EPT_MISCONFIG: "EPT misconfiguration",
    Fault.BUS: "table outside memory",
    Fault.PML_FULL: "PML full",
    Fault.NESTED_PAGE_FAULT: "nested page fault",
}


@dataclass
class _Reference:
    """One memory reference, or the data (number 0); `written`: the entry after A or D was set in it."""

    number: int
    kind: StepKind
    level: int
    guest_level: int
    hpa: int
    gpa: int
    entry: int
    second: str  # what the VMM's tables are called, "EPT " or "NPT "
    written: int | None = None

    @property
    def flags(self) -> str:
        if self.kind == StepKind.EPT and self.second == "EPT ":
            return ept_flags(self.entry, leaf=self.level == 1 or bool(self.entry & 0x80))
        leaf = self.level == 1 or (self.level in (2, 3) and bool(self.entry & 0x80))
        return guest_flags(self.entry, leaf=leaf, level=self.level)

    def name(self, guest: str) -> str:
        if self.kind == StepKind.DATA:
            return "data"
        return entry_name(self.level, of=self.second if self.kind == StepKind.EPT else guest)

    def lines(self) -> list[str]:
        """As a cell of the picture: number and address, entry, flags, entry after A or D was set."""
        if self.kind == StepKind.DATA:
            return [f"   {self.hpa:x}"]
        lines = [f"{self.number:2} {self.hpa:x}", f"   {self.entry:x}", f"   {self.flags}"]
        return lines if self.written is None else [*lines, f" → {self.written:x}"]


@dataclass
class _Row:
    """The references that one guest level, or the data (level 0), takes."""

    guest_level: int
    gpa: int
    ept: list[_Reference] = field(default_factory=list)
    last: _Reference | None = None


def _second_name(walk: Walk) -> str:
    return "NPT " if walk.npt else "EPT "


def _references(walk: Walk) -> list[_Reference]:
    found: list[_Reference] = []
    number = 0
    for step in walk.steps:
        level, guest_level, hpa, gpa, entry = (int(step[n]) for n in ("level", "guest_level", "hpa", "gpa", "entry"))
        kind = StepKind(int(step["kind"]))
        if kind in (StepKind.GUEST_AD, StepKind.EPT_AD):
            for reference in reversed(found):  # the read of this entry that stands last
                if reference.hpa == hpa:
                    reference.written = entry
                    break
            continue
        number += kind != StepKind.DATA
        at = 0 if kind == StepKind.DATA else number
        found.append(_Reference(at, kind, level, guest_level, hpa, gpa, entry, _second_name(walk)))
    return found


def _rows(references: Sequence[_Reference]) -> list[_Row]:
    rows: dict[int, _Row] = {}
    for reference in references:
        row = rows.setdefault(reference.guest_level, _Row(reference.guest_level, reference.gpa))
        if reference.kind == StepKind.EPT:
            row.ept.append(reference)
        else:
            row.last = reference
    return list(rows.values())


def picture(walk: Walk, *, colour: bool = False) -> list[str]:
    """A walk over EPT drawn, its references numbered in their order; without EPT :func:`steps`, a line a level."""
    rows = _rows(_references(walk))
    levels = [reference.level for row in rows for reference in row.ept]
    if not levels:
        return steps(walk, colour=colour)
    names = [entry_name(level, of=_second_name(walk)) for level in range(max(levels), min(levels) - 1, -1)]
    widths = [max([len(name) + 3, *_lengths(rows, i)]) for i, name in enumerate(names)]
    labels = [entry_name(row.guest_level, of="g") if row.guest_level else "data" for row in rows]
    gpa_at = max(map(len, labels)) + 2
    gpa_width = max([len("gpa"), *(len(f"{row.gpa:x}") for row in rows)])
    last_at = gpa_at + gpa_width + sum(widths) + len(_ARROW) * (len(widths) + 1)

    head = f"{'':{gpa_at}}{'gpa':{gpa_width}}"
    for name, width in zip(names, widths, strict=True):
        head += f"{'':{len(_ARROW)}}{f'   {name}':{width}}"
    lines = [paint(f"{head:{last_at}}   hpa", "dim", colour)]
    for row, label in zip(rows, labels, strict=True):
        if row is not rows[0]:
            lines.append(paint(f"{'':{gpa_at + 1}}╭{'─' * (last_at - gpa_at + 1)}╯", "dim", colour))
        stopped = _stopped(walk) if row is rows[-1] else ""
        lines += _draw(row, f"{label:{gpa_at}}{row.gpa:<{gpa_width}x}", widths, last_at, stopped)
    return lines


def _lengths(rows: Sequence[_Row], column: int) -> Iterator[int]:
    for row in rows:
        if column < len(row.ept):
            yield from map(len, row.ept[column].lines())


def _stopped(walk: Walk) -> str:
    return "" if walk.fault == Fault.NONE else f"  ✗ {_STOPPED.get(walk.fault, walk.fault.name)}"


def _draw(row: _Row, first: str, widths: Sequence[int], last_at: int, stopped: str) -> list[str]:
    lines = [first, "", "", ""]
    for reference, width in zip(row.ept, widths, strict=False):
        at = len(lines[0]) + len(_ARROW)
        cell = reference.lines()
        lines[0] += f"{_ARROW}{cell[0]:{width}}"
        for i, text in enumerate(cell[1:], 1):
            lines[i] = f"{lines[i]:{at}}{text}"
    if row.last is not None:  # a large EPT page leaves columns free: the arrow goes on over them
        lines[0] = f"{lines[0]:{last_at - len(_ARROW)}}" if len(row.ept) == len(widths) else f"{lines[0]} "
        lines[0] = f"{lines[0].ljust(last_at - len(_ARROW), '─')}{_ARROW if len(row.ept) == len(widths) else '──▸ '}"
        for i, text in enumerate(row.last.lines()):
            lines[i] = f"{lines[i]:{last_at}}{text}"
    lines[0] = lines[0].rstrip() + stopped
    return [line.rstrip() for line in lines if line.strip()]


def steps(walk: Walk, *, width: int = 120, colour: bool = False) -> list[str]:
    """The references of a walk as a table, a line each; in parts where `width` is too little."""
    references = _references(walk)
    if not references:
        return []
    ept = any(reference.kind == StepKind.EPT for reference in references)
    guest = "g" if ept else ""
    columns = [Column("#"), Column("reads", align="<"), Column("at hpa" if ept else "address"), Column("entry"),
               Column("flags", align="<")]  # fmt: skip
    if ept:
        columns += [Column("gpa"), Column("which is of", align="<")]
    table: list[list[Cell] | None] = []
    for r in references:
        data = r.kind == StepKind.DATA
        written = "" if r.written is None else f" → {r.written:x}"
        row = ["" if data else f"{r.number}", r.name(guest), f"{r.hpa:x}", "" if data else f"{r.entry:x}"]
        row.append("" if data else f"{r.flags}{written}")
        if ept:
            row += [f"{r.gpa:x}", entry_name(r.guest_level, of="the g") if r.guest_level else "the data"]
        if (
            ept
            and table
            and r.kind == StepKind.EPT
            and r.guest_level != references[references.index(r) - 1].guest_level
        ):
            table.append(None)
        table.append([Cell(text) for text in row])
    lines = render(columns, table, width=width, keep=2, colour=colour)
    lines[-1] += _stopped(walk)
    return lines
