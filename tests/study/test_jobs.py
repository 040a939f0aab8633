"""Studies in several threads: the results of one thread, in the same order; and what a signal leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu.study.curve import tlb_curve
from fastmmu.study.migrate import Plan, migrations
from fastmmu.study.overcommit import overcommit
from fastmmu.study.replay import replay_schemes
from fastmmu.study.shootdown import shootdown_study
from fastmmu.study.vpid import vpid_experiment
from fastmmu.threads import lanes
from fastmmu.trace import Batch, Trace, read_trace
from fastmmu.trace.bundle import bundled
from fastmmu.trace.system import SystemTrace

SYSTEM = Path(__file__).parents[1] / "data" / "systems" / "mm.rec.xz"


def program() -> Trace:
    return read_trace(bundled()["zstd"]).head(120_000)


def replays(jobs: int) -> Iterator[object]:
    trace = read_trace(SYSTEM)
    assert isinstance(trace, SystemTrace)
    for ran in replay_schemes(trace, memory="2G", jobs=jobs):
        yield replace(ran, found=ran.found and replace(ran.found, seconds=0.0))


def curves(jobs: int) -> list[object]:
    found = tlb_curve(program(), limit=2048, jobs=jobs)
    return [str(replace(found, seconds=0.0, curves=())), *((c.unit, c.sets, c.misses.tolist()) for c in found.curves)]


STUDIES: dict[str, Callable[[int], Iterable[object]]] = {
    "compare": lambda jobs: map(figures, fastmmu.compare(program(), pages=("4k", "thp"), jobs=jobs)),
    "compare, a system trace": lambda jobs: map(
        figures, fastmmu.compare(SYSTEM, memory="2G", shadow_keys=True, jobs=jobs)
    ),
    "compare, VMM in Python": lambda jobs: map(
        figures, fastmmu.compare(program().head(20_000), vmm="python", memory="1G", jobs=jobs)
    ),
    "tpr": lambda jobs: map(figures, fastmmu.tpr_study(program(), "winxp", jobs=jobs)),
    "vpid": lambda jobs: vpid_experiment(program(), rates=(0.1, 1.0, 5.0), jobs=jobs),
    "shootdown": lambda jobs: shootdown_study(program().head(20_000), (2, 3), overcommit=2, jobs=jobs),
    "overcommit": lambda jobs: overcommit(program(), shares=(1.0, 0.5), memory="256M", jobs=jobs),
    "migrate": lambda jobs: migrations(program(), plan=Plan(downtime=1e-4, rounds=3), memory="256M", jobs=jobs),
    "replay": replays,
    "tlb-curve": curves,
}


def figures(result: fastmmu.Result) -> dict[str, Any]:
    return {**vars(result), "seconds": 0.0}


@pytest.mark.parametrize("study", STUDIES)
def test_the_number_of_threads_changes_nothing(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does how little of the trace is held."""
    found = [list(map(str, STUDIES[study](jobs))) for jobs in (1, 2, 5)]
    assert found[0] == found[1] == found[2] != []
    monkeypatch.setattr(lanes, "WINDOW", 1)
    assert list(map(str, STUDIES[study](3))) == found[0]


class Counted(Trace):
    """A trace that is not in memory; `passes` that were begun."""

    name, format = "counted", "test"

    def __init__(self, n: int, seconds: float = 0.0) -> None:
        self.n, self.seconds, self.passes = n, seconds, 0

    def batches(self, chunk: int = 1000) -> Iterator[Batch]:
        self.passes += 1
        random = np.random.default_rng(1)
        for _ in range(self.n):
            time.sleep(self.seconds)
            yield Trace.from_arrays(random.integers(0, 1 << 22, 1000, dtype=np.uint64)).batches().__next__()


def test_a_trace_is_read_once() -> None:
    for study, passes in (
        (lambda trace: fastmmu.compare(trace, pages=("4k", "2m")), 1),
        (lambda trace: fastmmu.tpr_study(trace), 1),
        (lambda trace: vpid_experiment(trace, rates=(1, 2, 3)), 1),
        (lambda trace: list(overcommit(trace, shares=(1.0, 0.9), memory="256M")), 2),
        (lambda trace: tlb_curve(trace), 1),
    ):
        trace = Counted(5)
        assert study(trace)  # type: ignore[no-untyped-call]
        assert trace.passes == passes


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("keep_partial", [False, True])
def test_ctrl_c(jobs: int, keep_partial: bool) -> None:
    """A signal of the process, which comes while all machines run."""
    trace = Counted(10_000, 0.001)
    configs = [fastmmu.Config(mmu=mmu) for mmu in ("native", "shadow", "ept")]  # type: ignore[arg-type]
    timer, begun = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)), threading.Event()

    def progress(config: fastmmu.Config, events: int) -> None:
        if not begun.is_set():
            begun.set()
            timer.start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    found = []
    try:
        began = time.monotonic()
        for result in fastmmu.study.each(trace, configs, keep_partial=keep_partial, jobs=jobs, progress=progress):
            found.append(result)  # noqa: PERF402 - an exception ends it
        assert keep_partial
    except KeyboardInterrupt:
        assert not keep_partial
    finally:
        signal.signal(signal.SIGINT, before)
        timer.join()
    assert time.monotonic() - began < 8  # the trace takes 10 and more
    assert not any(thread.name == "fastmmu lane" for thread in threading.enumerate())
    assert bool(found) == keep_partial
    for result in found:
        assert not result.complete
        n = result.counters["accesses"]
        assert n % 1000 == 0
        whole = fastmmu.simulate(Counted(n // 1000), result.config)
        assert whole.counters == result.counters


def test_what_has_batches_and_is_no_trace() -> None:
    class Mine:
        def batches(self) -> Iterator[Batch]:
            raise AssertionError

    with pytest.raises(fastmmu.TraceError, match=r"a Mine has batches, but is no fastmmu\.Trace; derive its class"):
        fastmmu.compare(Mine())  # type: ignore[arg-type]
