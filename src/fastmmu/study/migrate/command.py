"""`fastmmu migrate`: live migration of the guest that runs a trace."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastmmu.cli import experiment
from fastmmu.cli import options as shared
from fastmmu.study.schemes import MIGRATE

if TYPE_CHECKING:
    from fastmmu.cli.progress import Report
    from fastmmu.trace import Trace

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] [TRACE ...]"

DESCRIPTION = """\
Live migration by pre-copy: the pages of the guest are sent while it runs, then those that it wrote meanwhile, round by
round, until they are few enough to be sent while it stands still. What was written is known from a dirty log, by
write protection of EPT entries, by the processor (PML), in a ring, or by write protection of shadow entries.
"""

EPILOG = """\
examples:
  fastmmu migrate app.lackey.xz
  fastmmu migrate app.npy --bandwidth 5e8 --downtime 0.005 --methods pml,shadow --plot rounds.svg
"""


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    shared.add_traces(parser, shared.RUNS)
    parser.add_argument(
        "--methods",
        type=shared.words(tuple(MIGRATE)),
        default=list(MIGRATE),
        metavar="LIST",
        help="default: all of them",
    )
    parser.add_argument("--bandwidth", type=_positive, default=1.25e9, metavar="B/S", help="bytes a second (1.25e9)")
    parser.add_argument("--downtime", type=_positive, default=0.001, metavar="S", help="stand still at most (0.001 s)")
    parser.add_argument("--rounds", type=shared.count(1), default=30, metavar="N", help="at most so many (30)")
    parser.add_argument("--ghz", type=_positive, default=3.0, metavar="N", help="clock of the processor (3)")
    parser.add_argument("--memory", metavar="SIZE", default="1G", help="guest memory (1G)")
    parser.add_argument("--most-cycles", type=_positive, default=1e10, metavar="N",
                        help="refuse what takes more modelled cycles of the guest (1e10, a minute or so)")  # fmt: skip
    shared.add_kvm(parser, "6.1")
    shared.add_vmm(parser)
    shared.add_costs(parser)
    shared.add_jobs(parser)
    experiment.add_results(parser, "pages by round", "a row a round")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.study.migrate.run import Migration, Plan, migrations
    from fastmmu.study.migrate.table import migration_plot, migration_rows, migration_table

    names = ("bandwidth", "downtime", "rounds", "ghz", "most_cycles")
    plan = Plan(**{name: getattr(options, name) for name in names})
    fields = shared.config_fields(options)
    experiment.check(options)
    costs = shared.cost_model(options)

    def study(trace: Trace, report: Report) -> Iterator[Migration]:
        return migrations(
            trace,
            options.methods,
            plan,
            costs=costs,
            progress=lambda method, n: report(f"{trace.name}, {method}", None, n),
            jobs=options.jobs,
            **fields,
        )

    return experiment.run(
        options, study, table=migration_table, rows=migration_rows, key="migrations", plot=migration_plot
    )[1]
