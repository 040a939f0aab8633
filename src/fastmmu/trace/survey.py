"""What a trace holds: one pass over it, without a simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.trace.base import Trace

__all__ = ["Survey", "survey"]

_PAGE = np.uint64(12)
_LARGE = np.uint64(9)  # from a 4 KB page number to that of the 2 MB page


@dataclass(frozen=True)
class Survey:
    """Counts of a trace.

    ``events`` in all, ``by_op`` operation -> number, ``pages_4k`` and ``pages_2m`` distinct pages that accesses start
    in, ``lowest`` and ``highest`` address accessed (None without accesses), ``processes`` distinct address spaces,
    ``instructions`` (None where the trace does not count them).
    """

    events: int
    by_op: dict[Op, int]
    pages_4k: int
    pages_2m: int
    lowest: int | None
    highest: int | None
    processes: int
    instructions: int | None = None

    @property
    def accesses(self) -> int:
        """Reads, writes, modifies and fetches."""
        return sum(n for op, n in self.by_op.items() if op <= LAST_ACCESS)


@checked
def survey(trace: Trace, *, progress: Callable[[int], None] | None = None) -> Survey:
    """Count what a trace holds; memory grows with the pages it touches, not with its length.

    Pages of different processes are told apart. :param progress: called after each batch with the events done.
    :raises TraceError: the trace is malformed.
    """
    counts = np.zeros(256, np.int64)
    pages: dict[int, npt.NDArray[np.uint64]] = {}  # process -> 4 KB page numbers
    lowest, highest, process, begun = None, None, 0, 0
    for batch in trace.batches():
        if trace.instructions is not None:
            begun += int(batch.instructions_column().sum(dtype=np.uint64))
        counts += np.bincount(batch.op, minlength=256)
        access = batch.op <= LAST_ACCESS
        switches = [] if access.all() else np.flatnonzero(batch.op == Op.SWITCH).tolist()
        for first, last in zip([0, *switches], [*switches, len(batch)], strict=True):
            if first in switches:
                process = int(batch.addr[first])
            found = batch.addr[first:last][access[first:last]]
            if len(found):
                low, high = int(found.min()), int(found.max())
                lowest = low if lowest is None else min(lowest, low)
                highest = high if highest is None else max(highest, high)
                pages[process] = np.union1d(pages.get(process, found[:0]), np.unique(found >> _PAGE))
        if progress is not None:
            progress(int(counts.sum()))
    by_op = {op: int(counts[op]) for op in Op if counts[op]}
    small = sum(map(len, pages.values()))
    large = sum(len(np.unique(numbers >> _LARGE)) for numbers in pages.values())
    return Survey(
        int(counts.sum()),
        by_op,
        small,
        large,
        lowest,
        highest,
        max(len(pages), 1),
        None if trace.instructions is None else begun,
    )
