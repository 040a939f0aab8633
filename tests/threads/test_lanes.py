"""Lanes: the results, their order, what an interruption leaves, and memory, whatever the number of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.errors import ConfigError, TraceError
from fastmmu.threads import lanes as module
from fastmmu.threads.lanes import Lane, finished, in_lanes, workers

Blocks = list[list[int]]


def folding(name: int, parts: int = 1, fails_at: int = -1, seen: list[int] | None = None) -> Lane[tuple[int, int, int]]:
    """Its name, how many blocks it had, and a number that depends on their order."""
    had = folded = 0
    try:
        while (block := (yield False)) is not None:
            had += 1
            if had == fails_at:
                raise TraceError(f"lane {name}")
            for part in range(parts):
                folded = (31 * folded + sum(block) + part + name) % 1_000_003
                if seen is not None:
                    seen.append(name)
                yield True
    except KeyboardInterrupt:
        return name, -had, folded
    return name, had, folded


def alone(name: int, blocks: Blocks, parts: int) -> tuple[int, int, int]:
    lane = folding(name, parts)
    next(lane)
    try:
        for block in [*blocks, None]:
            more = lane.send(block)
            while more:
                more = lane.send(None)
    except StopIteration as end:
        result: tuple[int, int, int] = end.value
        return result
    raise AssertionError("it did not end")


BLOCKS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), max_size=12)


@settings(deadline=None, max_examples=60)
@given(BLOCKS, st.lists(st.integers(1, 3), max_size=7), st.integers(1, 5), st.integers(1, 6))
def test_each_lane_gets_every_block_in_order(blocks: Blocks, parts: list[int], jobs: int, window: int) -> None:
    """However few bytes the window holds, and however the threads come to run."""
    before = module.WINDOW
    module.WINDOW = window
    try:
        made = [partial(folding, name, many) for name, many in enumerate(parts)]
        found = list(in_lanes(made, blocks, jobs=jobs, size=len))
    finally:
        module.WINDOW = before
    assert found == [alone(name, blocks, many) for name, many in enumerate(parts)]
    assert not threads()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "fastmmu lane"]


class Source:
    """Blocks that are counted while somebody holds them."""

    def __init__(self, n: int) -> None:
        self.n, self.alive, self.most, self.read = n, 0, 0, 0
        self.lock = threading.Lock()

    def __iter__(self) -> Iterator[list[int]]:
        for i in range(self.n):
            self.read += 1
            yield Block(self, i)


class Block(list[int]):
    def __init__(self, source: Source, i: int) -> None:
        super().__init__([i])
        self.source = source
        with source.lock:
            source.alive += 1
            source.most = max(source.most, source.alive)

    def __del__(self) -> None:
        with self.source.lock:
            self.source.alive -= 1


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_blocks_are_read_once_and_few_are_held(jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 5)
    source = Source(500)
    found = list(in_lanes([partial(folding, name) for name in range(6)], source, jobs=jobs, size=len))
    assert [had for _, had, _ in found] == [500] * 6
    assert source.read == 500
    assert source.most <= 5 + 1 + 6  # the window, one that is being read, and what each lane works on


def test_earlier_lanes_end_first() -> None:
    """As long as there are twice as many as threads; then they go side by side."""
    seen: list[int] = []
    list(in_lanes([partial(folding, name, 1, -1, seen) for name in range(4)], [[1]] * 50, jobs=1))
    assert seen == sorted(seen)
    lasts = [len(seen) - seen[::-1].index(name) for name in range(4)]
    seen.clear()
    list(in_lanes([partial(folding, name, 1, -1, seen) for name in range(7)], [[1]] * 50, jobs=2))
    assert lasts == [50, 100, 150, 200]
    assert set(seen[:90]) <= {0, 1, 2}
    assert set(seen[-40:]) <= {4, 5, 6}


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_error_comes_in_the_place_of_its_lane(jobs: int) -> None:
    made = [partial(folding, name, 1, 3 if name == 2 else -1) for name in range(5)]
    got: list[tuple[int, int, int]] = []
    with pytest.raises(TraceError, match="lane 2"):
        got.extend(in_lanes(made, [[1]] * 9, jobs=jobs))
    assert [name for name, *_ in got] == [0, 1]
    assert not threads()


@pytest.mark.parametrize("jobs", [1, 3])
def test_what_the_source_raises_comes_behind_its_last_block(jobs: int) -> None:
    def broken() -> Iterator[list[int]]:
        yield from [[1]] * 4
        raise TraceError("broken")

    for fails_at, message in ((3, "lane 0"), (-1, "broken")):
        with pytest.raises(TraceError, match=message):
            list(in_lanes([partial(folding, name, 1, fails_at) for name in range(3)], broken(), jobs=jobs))


def slow(name: int, seconds: float) -> Lane[int]:
    while (yield False) is not None:
        time.sleep(seconds)
    return name


def interrupted_at(step: int) -> Callable[[int, int], None]:
    left = [step]

    def progress(number: int, done: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_an_interruption_leaves_what_was_finished(jobs: int, step: int) -> None:
    made: list[Callable[[], Lane[Any]]] = [partial(slow, name, 0.001) for name in range(5)]
    got: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        got.extend(in_lanes(made, [[1]] * 10, jobs=jobs, progress=interrupted_at(step)))
    assert got == sorted(set(got))
    assert not threads()


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_an_interruption_leaves_parts(jobs: int) -> None:
    made = [partial(folding, name, 1) for name in range(5)]

    def source() -> Iterator[list[int]]:
        for i in range(1000):
            time.sleep(0.001)
            yield [i]

    found = list(in_lanes(made, source(), jobs=jobs, progress=interrupted_at(2), partial=True))
    assert found
    for name, had, folded in found:
        blocks = [[i] for i in range(abs(had))]
        assert alone(name, blocks, 1) == (name, abs(had), folded)
        assert -1000 < had < 0
    assert not threads()


def test_interruptions_thrown_in_between_two_results() -> None:
    """As a signal does that came while a result was being shown."""
    made: list[Callable[[], Lane[int]]] = [finished(0), finished(1), partial(slow, 2, 1.0), finished(3)]
    results = in_lanes(made, [[1]] * 1000, jobs=3)
    assert next(results) == 0
    time.sleep(0.6)
    assert isinstance(results, Iterator)
    throw: Callable[[type[BaseException]], int] = results.throw  # type: ignore[attr-defined]
    assert throw(KeyboardInterrupt) == 1
    assert throw(KeyboardInterrupt) == 3
    with pytest.raises(KeyboardInterrupt):
        throw(KeyboardInterrupt)
    assert not threads()


def test_results_that_nobody_wants_end_the_work() -> None:
    results = in_lanes([finished(0), partial(slow, 1, 0.01)], [[1]] * 100_000, jobs=2)
    assert next(results) == 0
    assert threads()
    del results
    assert not threads()


def test_progress_is_of_the_lane_that_is_waited_for() -> None:
    told: list[tuple[int, int]] = []
    list(in_lanes([partial(folding, name) for name in range(3)], [[1, 2]] * 5, progress=lambda *of: told.append(of)))
    assert told == sorted(set(told))
    assert [of for of in told if of[1] == 10] == [(0, 10), (1, 10), (2, 10)]


def test_threads() -> None:
    assert workers(3) == 3
    assert workers(None) >= 1
    with pytest.raises(ConfigError, match="jobs=0"):
        list(in_lanes([finished(1)], jobs=0))
    assert list(in_lanes([])) == []
