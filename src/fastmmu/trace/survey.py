"""What a trace holds: one pass over it, without a simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fastmmu._checked import checked
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.trace.base import Trace
from fastmmu.trace.events import U64

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


def _parted(values: U64, by: U64) -> Iterator[tuple[int, U64]]:
    """The values that go with each value of `by`."""
    order = np.argsort(by, kind="stable")
    keys, first = np.unique(by[order], return_index=True)
    yield from zip(keys.tolist(), np.split(values[order], first[1:]), strict=True) if len(keys) else ()


@checked
def survey(trace: Trace, *, progress: Callable[[int], None] | None = None) -> Survey:
    """Count what a trace holds; memory grows with the pages it touches, not with its length.

    Pages of different processes are told apart. :param progress: called after each batch with the events done.
    :raises TraceError: the trace is malformed.
    """
    counts = np.zeros(256, np.int64)
    pages: dict[int, U64] = {}  # process -> 4 KB page numbers
    lowest, highest, process, begun = None, None, 0, 0
    for batch in trace.batches():
        if trace.instructions is not None:
            begun += int(batch.instructions_column().sum(dtype=np.uint64))
        counts += np.bincount(batch.op, minlength=256)
        access = batch.op <= LAST_ACCESS
        found = batch.addr[access]
        if len(found):
            low, high = int(found.min()), int(found.max())
            lowest = low if lowest is None else min(lowest, low)
            highest = high if highest is None else max(highest, high)
        switch = batch.op == Op.SWITCH
        processes = np.concatenate([np.array([process], np.uint64), batch.addr[switch]])  # in their order
        process = int(processes[-1])
        for each, numbers in _parted(found >> _PAGE, processes[np.cumsum(switch)[access]]):
            pages[each] = np.union1d(pages.get(each, numbers[:0]), numbers)
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
