"""A trace cut into parts, each counted by itself: in threads of this process, or wherever an executor has its workers.

    switches   which process runs at each cut
    filters    what each part leaves in the first level, alone; one after the other that is what the first level holds
               at each cut, from which on a part knows what the second level sees
    counts     distances of each part, the order that it leaves, and what it has to ask the order before it
    merge      one after the other: `StackDistances.follow`

The second takes a fraction of the third: lists of one size, and where their sets are filled by the last events of a
part, only those. Nothing is estimated; the sums are those of one pass, bit for bit.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastmmu.errors import StudyError
from fastmmu.ops import Op
from fastmmu.study.curve.curve_kernel_py import StackDistances
from fastmmu.study.sweep.executors import Pool
from fastmmu.study.sweep.work import GivenTrace, TraceSpec, open_trace
from fastmmu.threads.blocks import apart
from fastmmu.trace.base import Trace
from fastmmu.trace.events import Batch

__all__ = ["STREAMED", "Numbers", "in_threads", "on_executor", "piece"]

STREAMED = 1 << 22
"""Events of a part where a trace is decoded as it is read: 40 MB wait for a thread."""
_TRIES = 3
_SOME = (1 << 16, 1 << 20)
"""Last events of a part that may say what it leaves in the first levels."""

Left = dict[str, Any]
Start = tuple[int, dict[int, Any]]


@dataclass(frozen=True)
class Numbers:
    """What is counted: the parameters of :class:`StackDistances`."""

    levels: tuple[tuple[tuple[int, ...], int], ...]
    ports: tuple[tuple[int, int, int, int | None] | None, ...]
    shift: int
    pcid: bool
    limit: int
    threshold: int

    def distances(self, start: Start | None = None) -> StackDistances:
        """From the begin of the trace, or from a cut on."""
        return StackDistances(self.levels, self.ports, self.shift, self.pcid, self.limit, self.threshold, start)

    def filters(self) -> Numbers:
        """The first levels that have a second one, alone, at their own size, and no order of all."""
        own = {
            port[0]: (self.levels[port[0]][0][port[1]], port[2]) for port in self.ports if port and port[3] is not None
        }
        levels = tuple(((own[i][0],), own[i][1]) if i in own else ((1,), 1) for i in range(max(own, default=0) + 1))
        ports = tuple((port[0], 0, port[2], None) if port and port[0] in own else None for port in self.ports)
        return Numbers(levels, ports, self.shift, self.pcid, 1, 0)

    def only(self, levels: Collection[int]) -> Numbers:
        """Of these levels."""
        return replace(self, ports=tuple(port if port and port[0] in levels else None for port in self.ports))

    @property
    def filtered(self) -> tuple[int, ...]:
        """First levels that have a second one."""
        return tuple(sorted({port[0] for port in self.ports if port and port[3] is not None}))


# ---- one part ----------------------------------------------------------------------------------------------------


def last_process(batches: Iterable[Batch]) -> int | None:
    """The process that runs at the end, None: that of the begin."""
    found = None
    for batch in batches:
        if batch.op.max(initial=0) >= Op.SWITCH and len(at := np.flatnonzero(batch.op == Op.SWITCH)):
            found = int(batch.addr[at[-1]])
    return found


def filtered_part(numbers: Numbers, batches: Sequence[Batch], process: int) -> Left:
    """What a part leaves in the first levels: of each by its last events, if they fill it, else by all."""
    plain = all(batch.op.max(initial=0) < Op.SWITCH for batch in batches)
    total = sum(map(len, batches))
    missing = {port[0] for port in numbers.ports if port}
    found: Left = {}
    for n in (*(n for n in _SOME if plain and 4 * n < total), total):
        kernel = _fed(numbers.only(missing), _last(batches, n), (process, {}))
        left = kernel.left()
        found = found or left
        for level in [level for level in missing if n == total or kernel.full(level)]:
            found["levels"][level] = left["levels"][level]
            missing.remove(level)
        if not missing:
            break
    return found | {"flushes": 0} if plain else found


def counted_part(numbers: Numbers, batches: Iterable[Batch], start: Start | None, first: int = 0) -> StackDistances:
    """A part that is counted. first: number of its first event, for errors."""
    return _fed(numbers, batches, start, first)


def _fed(numbers: Numbers, batches: Iterable[Batch], start: Start | None, first: int = 0) -> StackDistances:
    found = numbers.distances(start)
    found.begin_at(first)
    for batch in batches:
        found.feed(batch.op, batch.size, batch.addr)
    return found


def _last(batches: Sequence[Batch], n: int) -> list[Batch]:
    found: list[Batch] = []
    for batch in reversed(batches):
        found.append(batch[max(0, len(batch) - n) :])
        n -= len(found[-1])
        if not n:
            break
    return found[::-1]


class _Firsts:
    """What the first levels hold at each cut."""

    def __init__(self, numbers: Numbers) -> None:
        self.filtered, self.process = numbers.filtered, 0
        self.kernel = numbers.filters().distances()

    def start(self) -> Start:
        """From here on."""
        return self.process, {level: self.kernel.order_of_list(level, 0) for level in self.filtered}

    def behind(self, left: Left | None, process: int | None) -> None:
        """A part further."""
        if left is not None:
            self.kernel.follow(left)
        self.process = self.process if process is None else process


# ---- in threads --------------------------------------------------------------------------------------------------


def in_threads(
    trace: Trace, numbers: Numbers, jobs: int, part: int, progress: Callable[[int], None] | None = None
) -> StackDistances:
    """The distances of a trace, which is read once, in parts of so many events."""
    firsts, filters = _Firsts(numbers), numbers.filters()
    whole: StackDistances | None = None
    waiting: deque[Future[StackDistances]] = deque()
    before: list[Batch] | None = None
    events = 0

    def merge() -> None:
        nonlocal whole
        found = waiting.popleft().result()
        if whole is None:
            whole = found
        else:
            whole.follow(found.left())

    with ThreadPoolExecutor(jobs, thread_name_prefix="fastmmu part") as pool:
        try:
            for batches in _parts(trace, part):
                if before is not None:
                    left = pool.submit(filtered_part, filters, before, firsts.process) if numbers.filtered else None
                    firsts.behind(None if left is None else left.result(), last_process(before))
                start = None if before is None else firsts.start()
                waiting.append(pool.submit(counted_part, numbers, batches, start, events))
                before = batches
                while len(waiting) > jobs or (len(waiting) > 1 and waiting[0].done()):
                    merge()
                events += sum(map(len, batches))
                if progress is not None:
                    progress(events)
            while waiting:
                merge()
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return numbers.distances() if whole is None else whole


def _parts(trace: Trace, events: int) -> Iterator[list[Batch]]:
    """Blocks that follow one another, so many events together."""
    found: list[Batch] = []
    n = 0
    for batch in trace.batches():
        block = batch if trace.in_memory else apart(batch)
        while n + len(block) >= events:
            cut = events - n
            yield [*found, block[:cut]]
            found, n, block = [], 0, block[cut:]
        if len(block):
            found.append(block)
            n += len(block)
    if found:
        yield found


# ---- on an executor ----------------------------------------------------------------------------------------------


def piece(trace: Trace, first: int, stop: int) -> Iterator[Batch]:
    """The events from number `first` on, up to `stop`."""
    left = stop - first
    for batch in trace.events_from(first) if left else ():
        yield batch[:left]
        left -= len(batch)
        if left <= 0:
            return


def _opened(spec: TraceSpec | GivenTrace) -> Trace:
    return spec.trace if isinstance(spec, GivenTrace) else open_trace(spec).inner


def _switch_task(spec: TraceSpec | GivenTrace, first: int, stop: int) -> int | None:
    return last_process(piece(_opened(spec), first, stop))


def _filter_task(numbers: Numbers, spec: TraceSpec | GivenTrace, first: int, stop: int, process: int) -> Left:
    return filtered_part(numbers, list(piece(_opened(spec), first, stop)), process)


def _count_task(numbers: Numbers, spec: TraceSpec | GivenTrace, first: int, stop: int, start: Start | None) -> Left:
    return counted_part(numbers, piece(_opened(spec), first, stop), start, first).left()


def on_executor(
    spec: TraceSpec | GivenTrace,
    events: int,
    numbers: Numbers,
    pool: Pool,
    parts: int,
    progress: Callable[[int], None] | None = None,
) -> StackDistances:
    """The distances of a trace of so many events, cut into so many parts: each worker reads its own."""
    shared = pool.share(spec) if isinstance(spec, GivenTrace) else spec
    cuts = [events * i // parts for i in range(parts + 1)]
    bounds = list(itertools.pairwise(cuts))
    work = _Work(pool)
    switches = work.all([(_switch_task, shared, *each) for each in bounds[:-1]])
    firsts, filters = _Firsts(numbers), numbers.filters()
    processes = [0]
    for found in switches:
        processes.append(processes[-1] if found is None else found)
    lefts: list[Left | None] = [None] * (parts - 1)
    if numbers.filtered:
        lefts = work.all(
            [
                (_filter_task, filters, shared, *each, process)
                for each, process in zip(bounds[:-1], processes, strict=False)
            ]
        )
    starts: list[Start | None] = [None]
    for left, process in zip(lefts, processes[1:], strict=True):
        firsts.behind(left, process)
        starts.append(firsts.start())
    whole, done = numbers.distances(), 0
    tasks = [(_count_task, numbers, shared, *each, start) for each, start in zip(bounds, starts, strict=True)]
    for found, (first, stop) in zip(work.each(tasks), bounds, strict=True):
        whole.follow(found)
        done += stop - first
        if progress is not None:
            progress(done)
    return whole


class _Work:
    """Tasks on a pool, whose results come in their order; those of a worker that died are done again."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def all(self, tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        return list(self.each(tasks))

    def each(self, tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        at = tries = 0
        while at < len(tasks):
            try:
                flying = [self.pool.submit(*task) for task in tasks[at:]]
                try:
                    for future in flying:
                        found = future.result()
                        at, tries = at + 1, 0
                        yield found
                except BaseException:
                    self.pool.give_up(flying)
                    raise
            except BrokenExecutor as error:
                tries += 1
                if tries == _TRIES:
                    raise StudyError(f"the workers die: {error}; give them more memory, or more parts") from error
                self.pool.again()
