"""`fastmmu study`: experiments of the literature, ours beside what was published."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastmmu.cli import experiment, interruption, terminal
from fastmmu.cli import options as shared
from fastmmu.cli.progress import UntilInterrupted, progress
from fastmmu.errors import FastmmuError

if TYPE_CHECKING:
    from fastmmu.study.named.description import Experiment
    from fastmmu.study.named.run import Findings

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] [NAME ...]"

DESCRIPTION = """\
Runs experiments of the literature, each a TOML that names the source, the workloads, the configurations, what was
published, and a check that can fail. Prints a row a check: our figure, the published one, whether what is asserted
holds: directions and counts, never seconds. Without a name it lists the experiments. The exit code is 0 where all of
them hold, 1 where one does not.
"""

EPILOG = """\
examples:
  fastmmu study                                     what there is
  fastmmu study two-dimensional-walk                24 references
  fastmmu study tpr vpid --json found.json --plot found.svg
  fastmmu study shadow-or-ept --results shadow.results        the runs are kept, as those of `sweep`
  fastmmu study mine.toml                           one of your own: docs/experiments.md
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="of an experiment, or its file, NAME.toml")
    parser.add_argument(
        "--results", metavar="FOLDER", help="keep the runs here; those that are there are not made again"
    )
    shared.add_costs(parser)
    shared.add_jobs(parser)
    experiment.add_results(parser, "ours beside what was published", "a row a check")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.study.named.description import read_experiment, titles
    from fastmmu.study.named.table import list_table, named_plot, named_rows, named_table

    experiment.check(options)
    if not options.names:
        terminal.say(list_table(titles(), width=terminal.width(), colour=terminal.colour()))
        return 0
    chosen = [read_experiment(name) for name in dict.fromkeys(options.names)]  # all of them, before any is run
    every: list[Findings] = []
    failure: Exception | None = None
    interrupted = False
    for one in chosen:
        try:
            found = _run(options, one)
        except (FastmmuError, OSError) as error:
            failure = error
            break
        if found is None:
            interrupted = True
            break
        every.append(found)
        if not shared.to_stdout(options):
            terminal.say(named_table(found, width=terminal.width(), colour=terminal.colour()) + "\n")
    if interrupted and not every:
        raise KeyboardInterrupt
    if every or failure is None:
        shared.write_rows(options, [row for found in every for row in named_rows(found)], "checks")
    if options.plot is not None and every:
        named_plot(every, options.plot)
    if failure is not None:
        raise failure
    if interrupted:
        if not shared.to_stdout(options):
            terminal.say("interrupted: what is not here was not finished")
        return interruption.code()
    return 0 if all(found.holds for found in every) else 1


def _run(options: argparse.Namespace, one: Experiment) -> Findings | None:
    """What an experiment came to; None: a signal came before its end."""
    from fastmmu.study.named.run import figures_of, found_by

    how = {"costs": shared.cost_model(options), "jobs": options.jobs, "results": options.results}
    with progress(quiet=options.quiet) as report:

        def work() -> Iterator[Findings]:
            figures: dict[str, Any] = {}
            for _ in figures_of(one, figures, progress=report, **how):
                pass
            yield found_by(one, figures)

        return next(UntilInterrupted(work()), None)
