"""`fastmmu run --contiguity`: how contiguous programs' pages are at the end of a run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.cli.progress import progress
from fastmmu.errors import ConfigError

if TYPE_CHECKING:
    from fastmmu.machine.config import Config

__all__ = ["add_contiguity", "show_contiguity"]

_APART = ("checkpoint", "exits", "exit_stat", "plot", "warm_up", "interval", "sample_every", "roi")
"""What it does not do as well."""


def add_contiguity(group: Any) -> None:
    """--contiguity."""
    group.add_argument(
        "--contiguity",
        action="store_true",
        help="behind each result runs of programs' pages that follow each other in linear and guest-physical "
        "addresses, at its end; files have these",
    )


def show_contiguity(options: argparse.Namespace, config: Config) -> int:
    """Each trace, its counters, and how contiguous its pages are at its end; returns the exit code."""
    from fastmmu.machine.frames_py import program_runs
    from fastmmu.machine.simulation import Simulation
    from fastmmu.report import single
    from fastmmu.report.runs import run_lines, run_rows

    for name in _APART:
        if getattr(options, name, None):
            raise ConfigError(
                f"--contiguity looks at the end of a whole run; leave out --{name.replace('_', '-')}, or it"
            )
    shared.check_files(options)
    found = {}
    for trace in shared.traces(options):
        simulation = Simulation(config, costs=shared.cost_model(options))
        events = 0
        with progress(quiet=options.quiet) as report:
            for batch in trace.batches():
                simulation.feed(batch)
                events += len(batch)
                report(trace.name, events / trace.total if trace.total else trace.progress(), events)
        found[trace.name] = program_runs(simulation.machine)
        if not shared.to_stdout(options):
            result = simulation.result(trace=trace.name, path=trace.path or "")
            terminal.say(single(result, width=terminal.width(), colour=terminal.colour()) + "\n")
            for text in run_lines({f"{trace.name}, linear to guest-physical": found[trace.name]}):
                terminal.say(text)
    shared.write_rows(options, run_rows(found), "runs")
    return 0
