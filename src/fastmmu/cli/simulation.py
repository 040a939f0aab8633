"""Simulations in a row, on a terminal: progress, and what Ctrl-C leaves."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from fastmmu.cli import interruption, terminal
from fastmmu.cli import options as shared
from fastmmu.cli.checkpoint import check_checkpoint, checkpoint_of
from fastmmu.cli.progress import UntilInterrupted, progress
from fastmmu.cli.region import region_of, sampled
from fastmmu.errors import FastmmuError
from fastmmu.machine.checkpoint.runs import Checkpoint
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel
from fastmmu.machine.result import Result
from fastmmu.machine.side_by_side import each
from fastmmu.machine.simulation import Exits
from fastmmu.report import estimate_rows, estimates
from fastmmu.trace import Trace
from fastmmu.trace.identity import identified

__all__ = ["Log", "Session", "label", "run_all"]

MB = 1 << 20


class Log(Protocol):
    """Where the exits of runs go."""

    def of(self, trace: Trace) -> Exits:
        """Those of a trace."""

    def finish(self, results: Sequence[Result]) -> None:
        """All runs have ended, or were ended: what there is, is kept."""


def label(config: Config, configs: Sequence[Config]) -> str:
    """Name of a configuration among others: with its pages where these differ."""
    several = len({other.pages for other in configs}) > 1
    return f"{config.name} {config.pages}" if several else config.name


@dataclass
class Session:
    """All runs of one command: their results, whether they were interrupted, and what ended them instead."""

    costs: CostModel
    quiet: bool = False
    jobs: int | None = None
    results: list[Result] = field(default_factory=list)
    interrupted: bool = False
    failure: Exception | None = None
    exits: Callable[[Trace], Exits] | None = None
    region: dict[str, Any] = field(default_factory=dict)
    checkpoint: Callable[[int, int], Checkpoint | None] = lambda number, runs: None
    started: float = field(default_factory=time.monotonic)

    def run(self, trace: Trace, configs: Sequence[Config], *, runs: int) -> list[Result]:
        """The results of a trace under each configuration; after a signal those until then, the last perhaps partial.

        `runs` is the number of runs of the whole command, for the progress.
        """
        found: list[Result] = []
        trace = trace if trace.kind == "system" else identified(trace)
        with progress(quiet=self.quiet) as report:

            def done(config: Config, events: int) -> None:
                part = events / trace.total if trace.total else trace.progress()
                report(f"[{len(self.results) + 1}/{runs}] {trace.name}: {label(config, configs)}", part, events)

            exits = None if self.exits is None else self.exits(trace)
            how: dict[str, Any] = {"costs": self.costs, "exits": exits, "jobs": self.jobs, **self.region}
            kept = [self.checkpoint(len(self.results) + i, runs) for i in range(len(configs))]
            how["checkpoints"] = None if None in kept else kept
            steps = UntilInterrupted(each(trace, configs, progress=done, keep_partial=True, **how))
            try:
                for result in steps:
                    found.append(result)
                    self.results.append(result)
                    self.interrupted |= not result.complete
            except FastmmuError as error:
                self.failure = error
        self.interrupted |= steps.happened
        return found

    @property
    def ended(self) -> bool:
        """Whether no more can be run."""
        return self.interrupted or self.failure is not None

    def footer(self) -> str:
        """What the runs took: wall time and peak memory of the process."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        n = len(self.results)
        seconds = time.monotonic() - self.started
        return f"{n} run{'' if n == 1 else 's'} in {seconds:.1f} s, peak memory {peak / MB:.0f} MB"


def run_all(
    options: argparse.Namespace,
    configs: Sequence[Config],
    show: Callable[[list[Result], list[str]], None],
    log: Log | None = None,
    *,
    finish: Callable[[list[Result]], None] | None = None,
    interval: int | None = None,
) -> int:
    """Each trace under each configuration; returns the exit code.

    :param show: prints the results of a trace; it is also told the names of what was not run after Ctrl-C.
    :param log: is given the exits of all runs. :param finish: is given all results at the end. :param interval: where
        the options ask for none, results have this one for `show` and `finish`, and files do not.
    """
    exits = None if log is None else log.of
    session = Session(shared.cost_model(options), options.quiet, getattr(options, "jobs", None), exits=exits)
    session.region = region_of(options)
    session.checkpoint = partial(checkpoint_of, options)
    asked = "interval" in session.region
    if interval is not None:
        session.region.setdefault("interval", interval)
    if sampled(options):
        show = _show_estimates
    shared.check_files(options)
    check_checkpoint(options)
    chosen = shared.traces(options, system=True)
    for trace in chosen:
        results = session.run(trace, configs, runs=len(chosen) * len(configs))
        if not shared.to_stdout(options) and (results or not session.failure):
            try:
                ran = {id(result.config) for result in results}
                show(results, [label(config, configs) for config in configs if id(config) not in ran])
            except OSError as error:
                session.failure = session.failure or error
        if session.ended:
            break
    if session.results or not session.failure:
        try:
            if sampled(options):
                shared.write_rows(options, estimate_rows(session.results), "estimates")
            else:
                shared.write_files(
                    options, session.results if asked else [replace(r, series=None) for r in session.results]
                )
            if finish is not None and session.results:
                finish(session.results)
        finally:
            if log is not None:
                log.finish(session.results)
    if session.failure is not None:
        raise session.failure
    if not shared.to_stdout(options):
        terminal.say(session.footer() + (", interrupted" if session.interrupted else ""))
    return interruption.code() if session.interrupted else 0


def _show_estimates(results: list[Result], not_run: list[str]) -> None:
    text = estimates(results, width=terminal.width(), colour=terminal.colour())
    terminal.say(text + (f"\nNot run: {', '.join(not_run)}" if not_run else "") + "\n")
