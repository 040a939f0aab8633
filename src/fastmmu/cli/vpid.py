"""`fastmmu vpid`: what VPID is worth, by how often the guest exits."""

from __future__ import annotations

import argparse
from typing import Any

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.cli.progress import progress

__all__ = ["add", "handle"]

_DESCRIPTION = """\
TLB misses of a trace with and without VPID, at several rates of VM exits, and what is predicted without it:
misses with VPID + exits x resident working set (the pages that the TLB holds at an exit and that are used before
the next one, measured in the run with VPID).
"""

_EPILOG = """\
examples:
  fastmmu vpid
  fastmmu vpid app.lackey.xz --rates 0.1,1,10 --plot vpid.svg --csv vpid.csv
  fastmmu vpid app.lackey.xz --mmu shadow --tlb nehalem

columns:
  an exit, pages   resident working set, the mean over the exits looked at
  refills          walks without VPID for what an exit took, counted by the TLB itself
"""


def _rates(text: str) -> list[float]:
    try:
        rates = [float(word) for word in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate <= 1000 for rate in rates):
        raise argparse.ArgumentTypeError(f"{text!r}: give exits per thousand accesses, as in 0.1,1,10")
    return rates


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "vpid",
        help="TLB misses with and without VPID, by rate of exits",
        usage="fastmmu vpid [options] [TRACE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared.add_traces(parser, shared.RUNS)
    parser.add_argument("--rates", type=_rates, metavar="LIST", help="exits per 1000 accesses; 0.03,0.1,0.3,1,3")
    parser.add_argument("--mmu", choices=("shadow", "ept"), default="ept", help="default: ept")
    parser.add_argument("--pages", choices=("4k", "2m"), default="4k", help="guest pages; default: 4k")
    shared.add_tlb(parser)
    shared.add_files(parser)
    shared.add_quiet(parser)
    parser.add_argument("--plot", metavar="FILE", help="the misses as .png, .svg or .pdf (needs fastmmu[plot])")
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.machine.config import Config
    from fastmmu.report.figure import check_picture
    from fastmmu.report.vpid import vpid_plot, vpid_rows, vpid_table
    from fastmmu.study.vpid import RATES, vpid_experiment

    fields = {name: getattr(options, name) for name in ("tlb", "l1d", "l1i", "stlb", "replacement")}
    given = {name: value for name, value in fields.items() if value is not None}
    config = Config(mmu=options.mmu, pages=options.pages, **given)
    shared.check_files(options)
    if options.plot is not None:
        check_picture(options.plot)
    points = []
    for trace in shared.traces(options):
        with progress(quiet=options.quiet) as report:
            found = vpid_experiment(
                trace,
                config,
                options.rates or RATES,
                progress=lambda rate, n, t=trace: report(f"{t.name}, {rate:g} exits/1000", t.progress(), n),  # type: ignore[misc]
            )
        points += found
        if not shared.to_stdout(options):
            terminal.say(vpid_table(found, colour=terminal.colour()) + "\n")
    shared.write_rows(options, vpid_rows(points), "points")
    if options.plot is not None:
        vpid_plot(points, options.plot)
    return 0
