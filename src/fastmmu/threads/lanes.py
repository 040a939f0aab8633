"""Lanes: pieces of work that share one pass over a source, in several threads.

A lane is a generator. It is sent the blocks of the source, one by one, and None behind the last; it yields True where
it has more to do with what it was sent, False where it wants the next; what it returns is its result. It runs in one
thread at a time, not always the same. Where the work is interrupted KeyboardInterrupt is thrown into it.

The source is read once, by whichever thread finds it due, at most WINDOW bytes ahead of the lane that is farthest
behind. As long as that leaves a choice, earlier lanes end first; the last ones go side by side, so that all threads are
busy until the end. No result depends on how many there are.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

from fastmmu.errors import ConfigError
from fastmmu.threads.blocks import apart

__all__ = ["WINDOW", "Lane", "finished", "in_lanes", "workers"]

T = TypeVar("T")
Lane: TypeAlias = Generator[bool, Any, T]

WINDOW = 64 << 20
"""Bytes of blocks that wait for the lane farthest behind."""

_LOOK = 0.05  # seconds between two looks whether there is something to tell


def workers(jobs: int | None) -> int:
    """Threads that `jobs` stands for: None is as many as there are processors for this process.

    :raises ConfigError: it is below 1.
    """
    if jobs is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs < 1:
        raise ConfigError(f"jobs={jobs}: give 1 thread or more, or None for one a processor")
    return jobs


def finished(result: T) -> Callable[[], Lane[T]]:
    """A lane whose result is known."""

    def lane() -> Lane[T]:
        yield from ()
        return result

    return lane


def in_lanes(
    lanes: Sequence[Callable[[], Lane[T]]],
    source: Iterable[Any] = (),
    *,
    jobs: int | None = None,
    size: Callable[[Any], int] = lambda block: 0,
    progress: Callable[[int, int], None] | None = None,
    partial: bool = False,
) -> Iterator[T]:
    """The results of lanes, in their order, each as soon as it and those before it are there.

    KeyboardInterrupt, raised while a result is waited for or thrown in between two, ends the work: the results that
    there are follow, then the exception.

    :param lanes: each makes its lane, when that is begun. :param source: of the blocks. :param jobs: threads.
    :param size: bytes of a block, 0 where it takes no memory of its own; else it waits as a copy (`threads/blocks.py`).
    :param progress: called in this thread, now and then and before each result: number of the lane that is waited for,
        and the sum of the lengths of the blocks that it is done with.
    :param partial: what lanes that had begun return for KeyboardInterrupt is a result, too, and where there is one
        nothing is raised.
    :raises ConfigError: `jobs` is below 1.
    :raises BaseException: what a lane, or the source, raised; it comes in the place of that lane's result.
    """
    work = _Work([_Begun(make) for make in lanes], iter(source), workers(jobs), size)
    given = 0
    try:
        work.start()
        while given < len(lanes) and work.wait(given, progress):
            result = work.lanes[given].take()
            given += 1  # in the same breath as the yield: a signal is raised between calls
            yield result
        if given == len(lanes):
            return
    except KeyboardInterrupt:
        pass
    finally:
        work.stop()
    told = False
    for lane in work.lanes[given:]:
        told |= partial and lane.break_off()
        if lane.results:
            try:
                yield lane.take()
            except KeyboardInterrupt:  # once more: the next one is asked for
                continue
    if not told:
        raise KeyboardInterrupt


class _Begun(Generic[T]):
    """A lane and how far it is."""

    def __init__(self, make: Callable[[], Lane[T]]) -> None:
        self.make = make
        self.lane: Lane[T] | None = None
        self.at = self.done = 0  # blocks that it was sent; the sum of their lengths, once it is done with them
        self.block: Any = None  # that it is sent, or works on
        self.running = self.more = self.ended = False
        self.results: list[T] = []
        self.error: BaseException | None = None

    def step(self, failure: BaseException | None) -> None:
        """Let it run once: from its begin, on with what it has, with the next block, or None behind the last one;
        `failure`: what was there instead of that."""
        try:
            if self.lane is None:
                self.lane = self.make()
                self.more = next(self.lane)
                return
            if self.more:
                self.more = self.lane.send(None)
            elif self.block is None and failure is not None:
                self.more = self.lane.throw(failure)
            else:
                self.more = self.lane.send(self.block)
            if not self.more and self.block is not None:
                self.done += len(self.block)
                self.block = None
        except StopIteration as end:
            self.end(end.value)
        except BaseException as error:
            self.error, self.lane, self.ended = error, None, True

    def end(self, result: T) -> None:
        self.results.append(result)
        self.lane, self.ended = None, True

    def take(self) -> T:
        """The result, or raises what ended it."""
        if self.error is not None:
            raise self.error
        return self.results[0]

    def break_off(self) -> bool:
        """After an interruption: whether it makes a result of what it has had."""
        if self.lane is None or not self.at:
            return False
        try:
            self.lane.throw(KeyboardInterrupt)
        except StopIteration as end:
            self.end(end.value)
            return True
        except BaseException as error:
            self.error, self.lane, self.ended = error, None, True
        return False


class _Work(Generic[T]):
    """The lanes, the blocks that some of them still want, and the threads."""

    def __init__(self, lanes: list[_Begun[T]], source: Iterator[Any], jobs: int, size: Callable[[Any], int]) -> None:
        self.lanes, self.source, self.jobs, self.size = lanes, source, jobs, size
        self.blocks: deque[tuple[Any, int]] = deque()
        self.first = self.held = 0  # number of the first of them, bytes of all
        self.reading = self.read = False
        self.failure: BaseException | None = None  # of the source
        self.stopped = False
        self.changed = threading.Condition(threading.Lock())
        self.ends: SimpleQueue[None] = SimpleQueue()  # one thing for each lane that ended
        self.threads: list[threading.Thread] = []

    # ---- the thread that wants the results: takes no lock, in which a signal could be raised ----------------------

    def start(self) -> None:
        for _ in range(min(self.jobs, len(self.lanes) + 1)):
            thread = threading.Thread(target=self.run, name="fastmmu lane", daemon=True)
            thread.start()
            self.threads.append(thread)

    def stop(self) -> None:
        self.stopped = True
        for thread in self.threads:
            thread.join()

    def wait(self, number: int, progress: Callable[[int, int], None] | None) -> bool:
        """Until a lane ends; False: it was interrupted."""
        lane, told = self.lanes[number], -1
        while True:
            ended, done = lane.ended, lane.done
            if progress is not None and done != told and (done or ended):
                progress(number, done)
                told = done
            if ended:
                break
            with contextlib.suppress(Empty):
                self.ends.get(timeout=_LOOK)
        return not isinstance(lane.error, KeyboardInterrupt)

    # ---- the other threads ----------------------------------------------------------------------------------------

    def run(self) -> None:
        while (lane := self._next()) is not None:
            if isinstance(lane, _Begun):
                lane.step(self.failure)
                self._stepped(lane)
            else:
                self._read()

    def _next(self) -> _Begun[T] | bool | None:
        """What this thread does next: a lane, True: it reads; None: nothing any more."""
        with self.changed:
            while not self.stopped and not all(lane.ended for lane in self.lanes):
                due = not self.reading and not self.read and self.held < WINDOW
                lane = None if due and self.jobs > 1 else self._ready(due)
                if lane is not None:
                    lane.running = True
                    if lane.lane is not None and not lane.more:
                        lane.block = None if lane.at == self.first + len(self.blocks) else self._block(lane)
                    return lane
                if due:
                    self.reading = True
                    return True
                self.changed.wait(_LOOK)  # nobody tells it that all is stopped
        return None

    def _ready(self, due: bool) -> _Begun[T] | None:
        """The lane to go on with. The last ones, which could not be dealt out evenly one by one, go side by side.

        `due`: reading is more urgent than a lane whose turn it is not yet.
        """
        left = [lane for lane in self.lanes if not lane.ended]
        behind = self.first + len(self.blocks)
        ready = [lane for lane in left if not lane.running and (lane.more or lane.at < behind or self.read)]
        first = left if len(left) < 2 * self.jobs else left[: self.jobs]
        chosen = [lane for lane in ready if lane in first]
        return min(chosen or ([] if due else ready), key=lambda lane: lane.at, default=None)

    def _block(self, lane: _Begun[T]) -> Any:
        block = self.blocks[lane.at - self.first][0]
        lane.at += 1
        return block

    def _stepped(self, lane: _Begun[T]) -> None:
        with self.changed:
            lane.running = False
            self.stopped |= isinstance(lane.error, KeyboardInterrupt)
            if lane.ended:
                self.ends.put(None)
            farthest_behind = min((each.at for each in self.lanes if not each.ended), default=self.first)
            while self.first < farthest_behind:
                self.held -= self.blocks.popleft()[1]
                self.first += 1
            self.changed.notify_all()

    def _read(self) -> None:
        block = failure = None
        nbytes = 0
        try:
            block = next(self.source, None)
            if block is not None and (nbytes := self.size(block)):
                block = apart(block)
        except BaseException as error:
            block, failure = None, error
        with self.changed:
            self.reading = False
            if block is None:
                self.read, self.failure = True, failure
            else:
                self.blocks.append((block, nbytes))
                self.held += nbytes
            self.changed.notify_all()
