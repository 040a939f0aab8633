"""`fastmmu migrate`: live migration of the guest that runs a trace."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.cli.progress import INTERRUPTED, progress, until_interrupted

if TYPE_CHECKING:
    from fastmmu.study.migrate import Migration

__all__ = ["METHODS", "add", "handle"]

METHODS = ("write-protect", "pml", "ring", "shadow")

_DESCRIPTION = """\
Live migration by pre-copy: the pages of the guest are sent while it runs, then those that it wrote meanwhile, round by
round, until they are few enough to be sent while it stands still. What was written is known from a dirty log, by
write protection of EPT entries, by the processor (PML), in a ring, or by write protection of shadow entries.
"""

_EPILOG = """\
examples:
  fastmmu migrate app.lackey.xz
  fastmmu migrate app.npy --bandwidth 1e8 --downtime 0.005 --methods pml,shadow --plot rounds.svg
"""


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "migrate",
        help="live migration, by method of dirty logging",
        usage="fastmmu migrate [options] [TRACE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared.add_traces(parser, shared.RUNS)
    parser.add_argument(
        "--methods", type=shared.words(METHODS), default=list(METHODS), metavar="LIST", help="default: all of them"
    )
    parser.add_argument("--bandwidth", type=_positive, default=1.25e9, metavar="B/S", help="bytes a second (1.25e9)")
    parser.add_argument("--downtime", type=_positive, default=0.001, metavar="S", help="stand still at most (0.001 s)")
    parser.add_argument("--rounds", type=shared.count(1), default=30, metavar="N", help="at most so many (30)")
    parser.add_argument("--ghz", type=_positive, default=3.0, metavar="N", help="clock of the processor (3)")
    parser.add_argument("--memory", metavar="SIZE", default="1G", help="guest memory (1G)")
    shared.add_costs(parser)
    shared.add_files(parser, "a row a round")
    shared.add_quiet(parser)
    parser.add_argument("--plot", metavar="FILE", help="pages by round as .png, .svg or .pdf (needs fastmmu[plot])")
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.report.figure import check_picture
    from fastmmu.report.migrate import migration_plot, migration_rows, migration_table
    from fastmmu.study.migrate import Plan, migrate

    plan = Plan(bandwidth=options.bandwidth, downtime=options.downtime, rounds=options.rounds, ghz=options.ghz)
    shared.check_files(options)
    if options.plot is not None:
        check_picture(options.plot)
    costs = shared.cost_model(options)
    every: list[Migration] = []
    for trace in shared.traces(options):
        found: list[Migration] = []
        with progress(quiet=options.quiet) as report, until_interrupted() as interruption:
            for method in options.methods:
                told = f"{trace.name}, {method}"
                found.append(
                    migrate(
                        trace,
                        method,
                        plan,
                        memory=options.memory,
                        costs=costs,
                        progress=lambda n, t=told: report(t, None, n),  # type: ignore[misc]
                    )
                )
        if found and not shared.to_stdout(options):
            terminal.say(migration_table(found, colour=terminal.colour()))
        every += found
        if interruption.happened:
            break
    if interruption.happened and not every:
        raise KeyboardInterrupt
    shared.write_rows(options, migration_rows(every), "migrations")
    if options.plot is not None:
        migration_plot(every, options.plot)
    return INTERRUPTED if interruption.happened else 0
