"""`fastmmu overcommit`: the guest that runs a trace on hosts with less memory than it takes."""

from __future__ import annotations

import argparse
from typing import Any

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.cli.progress import progress

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
    model = parser.add_argument_group("the cost model")
    model.add_argument("--costs", metavar="FILE", help="TOML with the values that differ from fastmmu's costs.toml")
    model.add_argument("--generation", metavar="NAME", help="processor whose VM exits count: prescott ... icelake, zen")
    shared.add_files(parser)
    shared.add_quiet(parser)
    parser.add_argument("--plot", metavar="FILE", help="pages read back, as .png, .svg or .pdf (needs fastmmu[plot])")
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.report import files
    from fastmmu.report.overcommit import overcommit_plot, overcommit_rows, overcommit_table
    from fastmmu.study.overcommit import overcommit

    shared.check_files(options)
    if options.plot is not None:
        files.check_target(options.plot, "picture")
    costs = shared.cost_model(options)
    every = []
    for trace in shared.traces(options):
        with progress(quiet=options.quiet) as report:
            found = list(
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
    shared.write_rows(options, overcommit_rows(every), "runs")
    if options.plot is not None:
        overcommit_plot(every, options.plot)
    return 0 if all(run.equal for run in every) else 1
