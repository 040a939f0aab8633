"""One measurement: a call of ours in turns with the same work done by others.

FASTMMU_BENCH_ALONE=1 lets the rivals run once, to compare results with theirs, and measures ours alone: for
`bench/compare.py`, where another revision is the rival.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from pytest_benchmark.fixture import BenchmarkFixture

ALONE = "FASTMMU_BENCH_ALONE"

Result = TypeVar("Result")


class Rival(NamedTuple):
    """Another way to do the same work; `run` returns the seconds that it took for `items`."""

    name: str
    run: Callable[[], float]
    items: int


class Scale(NamedTuple):
    """How much to do: once, to see that it runs; as usual; or fully."""

    name: str
    rounds: int

    def of(self, once: int, usual: int, full: int) -> int:
        return {"once": once, "usual": usual, "full": full}[self.name]


SCALES = {"once": Scale("once", 1), "usual": Scale("usual", 7), "full": Scale("full", 15)}


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """The seconds that `call` takes."""

    def run() -> float:
        collecting = gc.isenabled()
        gc.disable()
        try:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        finally:
            if collecting:
                gc.enable()

    return run


class Race:
    """Fixture: `race(call, items, rivals)` measures in rounds and returns what the last call returned."""

    def __init__(self, benchmark: BenchmarkFixture, scale: Scale) -> None:
        self.benchmark, self.scale = benchmark, scale

    def __call__(
        self,
        call: Callable[[], Result],
        items: int,
        rivals: Iterable[Rival] = (),
        *,
        target: float | None = None,
        fresh: Callable[[], object] | None = None,
        **info: Any,
    ) -> Result:
        """`items`: how many one call does. `target`: the ratio to the first rival that is aimed at. `fresh` is done
        before each call, outside of its time. `info` goes into the table's last column, and the JSON."""
        others = list(rivals)
        taken: dict[str, list[float]] = {rival.name: [] for rival in others}
        last: list[Result] = []

        alone = bool(os.environ.get(ALONE))

        def setup() -> None:
            for rival in others:
                if not (alone and taken[rival.name]):
                    taken[rival.name].append(rival.run() / rival.items)
            if fresh is not None:
                fresh()

        def target_call() -> None:
            last[:] = [call()]

        warm = 1 if self.scale.rounds > 1 else 0
        pedantic: Callable[..., None] = self.benchmark.pedantic
        pedantic(target_call, setup=setup, rounds=self.scale.rounds, warmup_rounds=warm)
        extra: dict[str, Any] = {"items": items, **({"target": target} if target else {}), **info}
        if self.benchmark.stats is not None:
            ours = [seconds / items for seconds in self.benchmark.stats.stats.data]
            extra["ns_per_item"] = statistics.median(ours) * 1e9
            extra["rivals"] = {} if alone else {name: compared(ours, all[warm:]) for name, all in taken.items()}
        self.benchmark.extra_info.update(extra)
        return last[0]


def compared(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Ours over theirs, round for round: median, and the quarter of the rounds below and above."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"ns_per_item": statistics.median(theirs) * 1e9, "ratio": ratio, "low": low, "high": high}
