"""A walk for people and for files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fastmmu.dtypes import Fault, StepKind
from fastmmu.report.bits import address, entry_name
from fastmmu.report.outcome import Registers, Walk, outcome
from fastmmu.report.picture import picture, steps

__all__ = ["MODES", "Npt", "as_dict", "heading", "outcome", "picture", "registers", "steps"]

_ACCESS = {"r": "read", "w": "write", "rw": "read-modify-write", "x": "instruction fetch"}


class _Mode(Protocol):
    name: str


class Npt(Protocol):
    """AMD's nested page tables: :class:`fastmmu.Npt`."""

    @property
    def value(self) -> int: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


class _State(Registers, Protocol):
    cr3: int
    efer: int


_LEVELS = {"NONE": (0, 0), "BITS_32": (2, 10), "PAE": (2, 9), "LEVEL_4": (4, 9), "LEVEL_5": (5, 9)}
MODES = {"NONE": "paging off", "BITS_32": "32-bit paging", "PAE": "PAE paging", "LEVEL_4": "4-level paging",
          "LEVEL_5": "5-level paging"}  # fmt: skip


def heading(walk: Walk, state: _State, eptp: int | Npt | None) -> list[str]:
    """What is translated, how the address splits, and the registers."""
    mode = state.mode.name
    levels, bits = _LEVELS[mode]
    la = int(walk.la)
    who = "user mode" if state.cpl == 3 else "the kernel"
    lines = [f"linear address {address(la)}, {_ACCESS[walk.access]} by {who}; {MODES[mode]}"]
    if levels:
        split = [
            f"{entry_name(level)} {la >> (12 + bits * (level - 1)) & (1 << bits) - 1}" for level in range(levels, 0, -1)
        ]
        if mode == "PAE":
            split.insert(0, f"PDPTE {'' if walk.npt else 'register '}{la >> 30 & 3}")
        lines.append(f"indices: {', '.join(split)}; offset {la & 0xFFF:x}")
    return [*lines, registers(state, eptp)]


def registers(state: _State, eptp: int | Npt | None) -> str:
    """The registers that the tables hang on, as one line."""
    text = f"CR0 {state.cr0:x}  CR3 {state.cr3:x}  CR4 {state.cr4:x}  EFER {state.efer:x}"
    if eptp is not None and not isinstance(eptp, int):
        text += f"  nCR3 {eptp.value:x} ({eptp.options['levels']} levels)"
    elif eptp is not None:
        flags = "with accessed and dirty flags" if eptp & 0x40 else "no accessed and dirty flags"
        text += f"  EPTP {eptp:x} ({(eptp >> 3 & 7) + 1} levels, {flags})"
    return text


def as_dict(walk: Walk) -> dict[str, Any]:
    """A walk as plain numbers and strings; addresses and entries as "0x..." text."""
    translated = walk.fault == Fault.NONE
    return {
        "va": f"{int(walk.la):#x}",
        "access": walk.access,
        "fault": Fault(walk.fault).name.lower(),
        "pa": f"{walk.pa:#x}" if translated else None,
        "gpa": f"{walk.gpa:#x}",
        "error_code": walk.error_code,
        "qualification": None if walk.qualification is None else f"{int(walk.qualification):#x}",
        "guest_refs": walk.guest_refs,
        "ept_refs": walk.ept_refs,
        "page_size": walk.page_size,
        "ept_page_size": walk.ept_page_size,
        "memory_type": walk.memory_type.name if translated else None,
        "steps": [
            {
                "kind": StepKind(int(step["kind"])).name.lower(),
                "level": int(step["level"]),
                "guest_level": int(step["guest_level"]),
                "hpa": f"{int(step['hpa']):#x}",
                "gpa": f"{int(step['gpa']):#x}",
                "entry": f"{int(step['entry']):#x}",
            }
            for step in walk.steps
        ],
    }
