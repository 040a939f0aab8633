"""A booting guest for people and files: step by step, guest and hardware side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastmmu.report.table import Cell, Column, render

if TYPE_CHECKING:
    from fastmmu.study.boot.run import Boot, Done

__all__ = ["boot_rows", "boot_table"]

_SHOWN = ("cr0", "cr3", "cr4", "efer")
_MODES = {"NONE": "protected", "BITS_32": "32-bit", "PAE": "PAE", "LEVEL_4": "4-level", "LEVEL_5": "5-level"}


def boot_rows(found: Sequence[Boot]) -> list[dict[str, Any]]:
    """One flat dict a step.

    Keys: scheme, step, name, mode, guest_cr0, ..., hw_cr0, ..., vm86, cr3_exiting, instructions, page_faults, refused
    (writes that were #GP), exits, exits_<reason> of every reason that occurs, broken (invariants that do not hold).
    """
    reasons = sorted({reason for run in found for step in run.steps for reason in step.exits})
    rows = []
    for run in found:
        for number, step in enumerate(run.steps, 1):
            row: dict[str, Any] = {"scheme": _name(run), "step": number, "name": step.name, "mode": _mode(step)}
            row |= {f"guest_{name}": step.guest[name] for name in _SHOWN}
            row |= {f"hw_{name}": step.hardware[name] for name in _SHOWN}
            row |= {"vm86": step.hardware["vm86"], "cr3_exiting": step.hardware["cr3_load_exiting"]}
            faults, refused = _counts(step)
            row |= {"instructions": len(step.outcomes), "page_faults": faults, "refused": refused}
            row |= {"exits": sum(step.exits.values())}
            row |= {f"exits_{reason}": step.exits.get(reason, 0) for reason in reasons}
            rows.append({**row, "broken": len(step.broken)})
    return rows


def boot_table(run: Boot, *, width: int = 120, colour: bool = False) -> str:
    """A row a step, and below it the exits of all of them."""
    columns = [
        Column("step", align="<", words=True),
        Column("mode", "guest", align="<"),
        *(Column(name.upper(), "guest") for name in _SHOWN),
        *(Column(name.upper(), "hardware") for name in _SHOWN),
        Column("VM86", "hardware"),
        Column("CR3 exits", "hardware"),
        Column("#PF"),
        Column("#GP"),
        Column("exits", align="<", words=True),
    ]
    rows: list[list[Cell] | None] = []
    for step in run.steps:
        same = run.config.mmu == "native"
        cells = [Cell(step.name), Cell(_mode(step))]
        cells += [Cell(f"{step.guest[name]:x}") for name in _SHOWN]
        differs = ["" if step.hardware[name] == step.guest[name] else "yellow" for name in _SHOWN]
        cells += [Cell(f"{step.hardware[name]:x}", style) for name, style in zip(_SHOWN, differs, strict=True)]
        cells += [Cell("yes" if step.hardware["vm86"] else ""), Cell("on" if step.hardware["cr3_load_exiting"] else "")]
        cells += [Cell(str(n) if n else "") for n in _counts(step)]
        cells.append(Cell("" if same else _exits(step.exits)))
        rows.append(cells)
    every: dict[str, int] = {}
    for step in run.steps:
        for reason, count in step.exits.items():
            every[reason] = every.get(reason, 0) + count
    lines = [
        f"{_name(run)}: a guest from real mode to 5-level paging and back",
        "",
        *render(columns, rows, width=width, colour=colour),
    ]
    if run.config.mmu != "native":
        lines += ["", f"{sum(every.values())} exits: {_exits(every)}"]
    wrong = [f"{step.name}: {text}" for step in run.steps for text in step.broken]
    return "\n".join([*lines, *wrong, ""])


def _name(run: Boot) -> str:
    return f"{run.scheme}+VPID" if run.config.vpid and run.config.mmu != "native" else run.scheme


def _mode(step: Done) -> str:
    return "real" if not step.guest["cr0"] & 1 else _MODES[step.guest["mode"]]


def _counts(step: Done) -> tuple[int, int]:
    """Page faults, and writes that were refused."""
    faults = sum(isinstance(came, tuple) and came[1] is not None for came in step.outcomes)
    return faults, sum(isinstance(came, str) and came != "" for came in step.outcomes)


def _exits(exits: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(exits.items(), key=lambda item: -item[1]))
