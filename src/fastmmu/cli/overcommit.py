"""`fastmmu overcommit`: the guest that runs a trace on hosts with less memory than it takes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.cli.progress import INTERRUPTED, progress, until_interrupted

if TYPE_CHECKING:
    from fastmmu.study.overcommit import Overcommit

__all__ = ["RECLAIM", "SCHEMES", "add", "handle"]

SCHEMES = ("shadow", "ept", "ept-tracked", "ept-zapped")
RECLAIM = ("clock", "lru")

_DESCRIPTION = """\
A host with less memory than its guest uses: pages go to disk and come back at their next use. For each scheme (shadow
paging, EPT with A flags, EPT without them: rights set aside until the next access, or entries taken away), for each
policy (a clock, or generations) and each size of the host: pages moved, VM exits, questions whether a page is in use,
modelled cycles. The guest's addresses, faults and counters are compared with those on a host with memory for all.
"""

_EPILOG = """\
examples:
  fastmmu overcommit app.lackey.xz
  fastmmu overcommit app.npy --host-memory 90%,50% --reclaim lru --schemes ept,ept-tracked --csv runs.csv
"""


def _shares(text: str) -> list[float]:
    try:
        found = [float(word.strip().removesuffix("%")) / 100 for word in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < share <= 1 for share in found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of percentages above 0 and up to 100, as in 100%,50%")
    return list(dict.fromkeys(found))


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "overcommit",
        help="hosts with less memory than the guest uses",
        usage="fastmmu overcommit [options] [TRACE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared.add_traces(parser, shared.RUNS)
    parser.add_argument(
        "--schemes", type=shared.words(SCHEMES), default=list(SCHEMES), metavar="LIST", help="default: all of them"
    )
    parser.add_argument(
        "--host-memory",
        type=_shares,
        default=[1.0, 0.75, 0.5, 0.25],
        metavar="LIST",
        help="of what the guest takes of an unlimited host (100%%,75%%,50%%,25%%)",
    )
    parser.add_argument(
        "--reclaim", type=shared.words(RECLAIM), default=list(RECLAIM), metavar="LIST", help="clock, lru (both)"
    )
    parser.add_argument("--memory", metavar="SIZE", default="1G", help="guest memory (1G)")
    shared.add_costs(parser)
    shared.add_files(parser)
    shared.add_quiet(parser)
    parser.add_argument("--plot", metavar="FILE", help="pages read back, as .png, .svg or .pdf (needs fastmmu[plot])")
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.report.figure import check_picture
    from fastmmu.report.overcommit import overcommit_plot, overcommit_rows, overcommit_table
    from fastmmu.study.overcommit import overcommit

    shared.check_files(options)
    if options.plot is not None:
        check_picture(options.plot)
    costs = shared.cost_model(options)
    every: list[Overcommit] = []
    for trace in shared.traces(options):
        found: list[Overcommit] = []
        with progress(quiet=options.quiet) as report, until_interrupted() as interruption:
            found.extend(  # one by one, so that those before Ctrl-C are there
                overcommit(
                    trace,
                    options.schemes,
                    options.host_memory,
                    options.reclaim,
                    memory=options.memory,
                    costs=costs,
                    progress=lambda scheme, n, t=trace: report(f"{t.name}, {scheme}", None, n),  # type: ignore[misc]
                )
            )
        if found and not shared.to_stdout(options):
            terminal.say(overcommit_table(found, colour=terminal.colour()))
        every += found
        if interruption.happened:
            break
    if interruption.happened and not every:
        raise KeyboardInterrupt
    shared.write_rows(options, overcommit_rows(every), "runs")
    if options.plot is not None:
        overcommit_plot(every, options.plot)
    if interruption.happened:
        return INTERRUPTED
    return 0 if all(run.equal for run in every) else 1
