"""The log of VM exits of a run: a record an exit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import check_fields, checked
from fastmmu.dtypes import EXIT_DTYPE
from fastmmu.errors import StateError
from fastmmu.exits import PRICED, REASON_NAMES, ExitReason, FaultClass, svm_exit, svm_name
from fastmmu.machine.costs import CostModel

__all__ = ["KINDS", "ExitLog", "priced"]

KINDS = (*REASON_NAMES, *PRICED)
"""What the cost of an exit goes by, by the number in ``kind``: see :func:`fastmmu.machine.costs.exits_by_class`."""


@dataclass(frozen=True, eq=False, repr=False)
class ExitLog:
    """VM exits, the oldest first.

    ``records``: structured array of ``fastmmu.dtypes.EXIT_DTYPE``, a record an exit. ``lost``: exits before these that
    the log had no room for. ``vendor``: of the processor; the reasons of one of AMD are told by its exit codes.

    Threads: a copy of the log, which nothing changes; share it.
    """

    records: npt.NDArray[np.void]
    lost: int = 0
    vendor: str = "intel"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.records.dtype != EXIT_DTYPE or self.records.ndim != 1:
            raise StateError(f"records of dtype {self.records.dtype} are no exits; give a 1-D array of EXIT_DTYPE")

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        """One line: how many, and how many of each reason."""
        amd = self.vendor == "amd"
        reasons = ", ".join(f"{n:,} {name}" for name, n in (self.by_code() if amd else self.by_reason()).items())
        before = f", {self.lost:,} before them lost" if self.lost else ""
        return f"<ExitLog of {len(self):,} exits{before}{': ' if reasons else ''}{reasons}>"

    @property
    def cycles(self) -> float:
        """Modelled cycles of the exits."""
        return float(self.records["cycles"].sum())

    def by_reason(self) -> dict[str, int]:
        """How many exits by reason, as ``exits_by_reason`` of the counters."""
        return _counted(self.records["reason"], REASON_NAMES)

    def by_code(self) -> dict[str, int]:
        """How many exits by the exit code that a processor of AMD has for what they stand for, by its name:
        ``fastmmu.exits.svm_name``, as npf, cr4_write, excp_14."""
        columns = ("reason", "qualification", "gpa", "intr_info", "error_code")
        each, many = np.unique(self.records[list(columns)], return_counts=True)
        found: dict[str, int] = {}
        for record, n in zip(each.tolist(), many.tolist(), strict=True):
            name = svm_name(svm_exit(*record)[0])
            found[name] = found.get(name, 0) + n
        return dict(sorted(found.items()))

    @checked
    def by_class(self, reason: int = ExitReason.EPT_VIOLATION) -> dict[str, int]:
        """How many exits of a reason by their class, in lower case; those without one are "none"."""
        names = [each.name.lower() for each in FaultClass]
        return _counted(self.records["class"][self.records["reason"] == int(reason)], names)

    def by_kind(self) -> dict[str, int]:
        """How many exits by what their cost goes by: :func:`fastmmu.machine.costs.exits_by_class`."""
        return _counted(self.records["kind"], KINDS)

    @checked
    def of(self, vcpu: int) -> ExitLog:
        """Those of one vCPU, by its number within the machine."""
        return ExitLog(self.records[self.records["vcpu"] == vcpu], self.lost, self.vendor)


def _counted(numbers: npt.NDArray[Any], names: tuple[str, ...] | list[str]) -> dict[str, int]:
    found = np.bincount(numbers, minlength=len(names))
    return {name: int(n) for name, n in zip(names, found, strict=True) if n}


def priced(records: npt.NDArray[np.void], costs: CostModel | None = None) -> npt.NDArray[np.void]:
    """The records with the cycles that the model, the default one, makes of their kinds."""
    records["cycles"] = np.array([(costs or _default()).exit_cost(kind) for kind in KINDS])[records["kind"]]
    return records


@cache
def _default() -> CostModel:
    return CostModel.load()
