"""`fastmmu overcommit`: the guest that runs a trace on hosts with less memory than it takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastmmu.cli import experiment
from fastmmu.cli import options as shared
from fastmmu.study.schemes import OVERCOMMIT, RECLAIM

if TYPE_CHECKING:
    from fastmmu.cli.progress import Report
    from fastmmu.trace import Trace

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] [TRACE ...]"

DESCRIPTION = """\
A host with less memory than its guest uses: pages go to disk and come back at their next use. For each scheme (shadow
paging, EPT with A flags, EPT without them: rights set aside until the next access, or entries taken away), for each
policy (a clock, or generations) and each size of the host: pages moved, VM exits, questions whether a page is in use,
modelled cycles. The guest's addresses, faults and counters are compared with those on a host with memory for all.
"""

EPILOG = """\
examples:
  fastmmu overcommit app.lackey.xz
  fastmmu overcommit app.npy --host-memory 90%,50% --reclaim lru --schemes ept,ept-tracked --csv runs.csv
"""


def _shares(text: str) -> list[float]:
    return list(dict.fromkeys(map(shared.share, text.split(","))))


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    shared.add_traces(parser, shared.RUNS)
    parser.add_argument(
        "--schemes",
        type=shared.words(tuple(OVERCOMMIT)),
        default=list(OVERCOMMIT),
        metavar="LIST",
        help="default: all of them",
    )
    parser.add_argument(
        "--host-memory",
        type=_shares,
        default=[1.0, 0.75, 0.5, 0.25],
        metavar="LIST",
        help="of what the guest takes of an unlimited host: percent, or shares as 0.5 (100%%,75%%,50%%,25%%)",
    )
    parser.add_argument(
        "--reclaim", type=shared.words(RECLAIM), default=list(RECLAIM), metavar="LIST", help="clock, lru (both)"
    )
    parser.add_argument("--memory", metavar="SIZE", default="1G", help="guest memory (1G)")
    shared.add_kvm(parser, "6.1")
    shared.add_vmm(parser)
    shared.add_costs(parser)
    shared.add_jobs(parser)
    experiment.add_results(parser, "pages read back,")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 where a guest came out differently than with memory for all."""
    from fastmmu.study.overcommit.run import Overcommit, overcommit
    from fastmmu.study.overcommit.table import overcommit_plot, overcommit_rows, overcommit_table

    fields = shared.config_fields(options)
    experiment.check(options)
    costs = shared.cost_model(options)

    def study(trace: Trace, report: Report) -> Iterator[Overcommit]:
        return overcommit(
            trace,
            options.schemes,
            options.host_memory,
            options.reclaim,
            costs=costs,
            progress=lambda scheme, n: report(f"{trace.name}, {scheme}", None, n),
            jobs=options.jobs,
            **fields,
        )

    found, code = experiment.run(
        options, study, table=overcommit_table, rows=overcommit_rows, key="runs", plot=overcommit_plot
    )
    return code or (0 if all(run.equal for run in found) else 1)
