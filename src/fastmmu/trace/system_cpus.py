"""The CPUs of a system trace: their registers at the start, and the order in which records of several may stand.

A trace of one CPU begins with its five registers. One of several goes on with a CPU record and five registers for each
of the others; then a CPU record says who runs. From then on CPU records alone say whose the records are.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.ops import RecordOp

__all__ = ["INITIAL", "INITIAL_FLAG", "REGISTERS", "Order", "Spaces", "is_start", "registers_of"]

INITIAL = {op: op.name.lower() for op in (RecordOp.CR0, RecordOp.CR3, RecordOp.CR4, RecordOp.EFER, RecordOp.PKRU)}
INITIAL_FLAG = 16
REGISTERS = len(INITIAL)
ICR = 0xFEE0_0300


def is_start(rows: npt.NDArray[Any]) -> bool:
    """Whether these five records are the registers of a CPU at the start, each once."""
    return (
        len(rows) == REGISTERS
        and set(rows["op"].tolist()) == set(INITIAL)
        and bool((rows["flags"] == INITIAL_FLAG).all())
    )


def registers_of(rows: npt.NDArray[Any]) -> dict[str, int]:
    """The registers that these five records give: cr0, cr3, cr4, efer, pkru."""
    return {INITIAL[RecordOp(int(row["op"]))]: int(row["val"]) for row in rows}


class Order:
    """Looks at records in their order, a chunk after the other.

    :param cpus: number of CPUs at the start. :param start: number of records there.
    """

    def __init__(self, cpus: int, start: int) -> None:
        self._cpus = cpus
        self._start = start
        self._instructions = 0
        self._last: tuple[int, int] = (-1, 0)  # op and val

    def fault(self, rows: npt.NDArray[Any], first: int) -> tuple[int, str] | None:
        """The number of the first record that is out of order and what is wrong with it; None: none is.

        :param first: number of the first of `rows`.
        """
        found = [
            fault
            for fault in (self._cpu(rows), self._initial(rows, first), self._ipi(rows), self._mark(rows))
            if fault is not None
        ]
        if len(rows):
            self._last = int(rows["op"][-1]), int(rows["val"][-1])
        if not found:
            return None
        at, what = min(found)
        return first + at, what

    def _cpu(self, rows: npt.NDArray[Any]) -> tuple[int, str] | None:
        wrong = np.flatnonzero((rows["op"] == RecordOp.CPU) & (rows["aux"] >= self._cpus))
        if not len(wrong):
            return None
        at = int(wrong[0])
        there = "is CPU 0 alone" if self._cpus == 1 else f"are CPUs 0 to {self._cpus - 1}"
        return at, (
            f"CPU {int(rows['aux'][at])}: at the start there {there}; each CPU needs a CPU record and its "
            f"{REGISTERS} registers there, record the trace again with them"
        )

    def _initial(self, rows: npt.NDArray[Any], first: int) -> tuple[int, str] | None:
        wrong = np.flatnonzero(rows["flags"] & INITIAL_FLAG)
        wrong = wrong[wrong + first >= self._start]
        if not len(wrong):
            return None
        return int(wrong[0]), (
            f"a register of the start (flags {INITIAL_FLAG}) behind the start, which ends at record {self._start}; "
            f"the {REGISTERS} of each CPU stand together there, behind a CPU record of its own"
        )

    def _ipi(self, rows: npt.NDArray[Any]) -> tuple[int, str] | None:
        at = np.flatnonzero(rows["op"] == RecordOp.IPI)
        if not len(at):
            return None
        ops = np.append(np.uint8(max(self._last[0], 0)), rows["op"])[at]
        vals = np.append(np.uint64(self._last[1]), rows["val"])[at]
        wrong = np.flatnonzero((ops != RecordOp.WRITE) | (vals != ICR))
        if not len(wrong):
            return None
        return int(at[wrong[0]]), f"an IPI that no write to {ICR:#x} stands right before; records are missing"

    def _mark(self, rows: npt.NDArray[Any]) -> tuple[int, str] | None:
        at = np.flatnonzero(rows["op"] == RecordOp.MARK)
        if not len(at) or self._cpus == 1:
            return None
        counts = [self._instructions, *rows["val"][at].tolist()]
        self._instructions = counts[-1]
        for k, (before, now) in enumerate(itertools.pairwise(counts)):
            if now < before:
                return int(at[k]), (
                    f"a MARK after {now} instructions behind one after {before}; the records are not in their order"
                )
        return None


class Spaces:
    """Address spaces by the order in which they appear, for one processor that is all CPUs in turn.

    :param cr3: of each CPU at the start; that of CPU 0 is number 0.
    """

    def __init__(self, cr3: list[int]) -> None:
        self._running = cr3
        self._cpu = 0
        self._numbers = {_root(cr3[0]): 0}
        self._now = 0

    def switches(self, rows: npt.NDArray[Any]) -> tuple[list[int], list[bool]]:
        """Number of the address space from each CR3 and CPU record on, and whether it is a switch: a write to CR3, or
        a CPU whose space is another."""
        numbers, switches = [], []
        for op, aux, val in zip(rows["op"].tolist(), rows["aux"].tolist(), rows["val"].tolist(), strict=True):
            if op == RecordOp.CPU:
                self._cpu = aux
            else:
                self._running[self._cpu] = val
            number = self._numbers.setdefault(_root(self._running[self._cpu]), len(self._numbers))
            numbers.append(number)
            switches.append(op != RecordOp.CPU or number != self._now)
            self._now = number
        return numbers, switches


def _root(cr3: int) -> int:
    return cr3 & 0x000F_FFFF_FFFF_F000
