"""`fastmmu tlb-curve`: misses of TLBs of every size, from one pass over a trace."""

from __future__ import annotations

import argparse
from typing import Any

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.cli.progress import progress

__all__ = ["add", "handle"]

_DESCRIPTION = """\
How often TLBs of every size would miss on a trace: fully associative ones, and set-associative ones by their number
of sets. One pass, from the distances between uses of a page in the order of their last use (LRU). Exact, and equal to
what `fastmmu run --premapped` counts at each size; with --sample the fully associative curves are estimates, with
their standard error. The second level sees the misses of the first level that --tlb, --l1d and --l1i describe.
"""

_EPILOG = """\
examples:
  fastmmu tlb-curve app.lackey.xz
  fastmmu tlb-curve app.lackey.xz --pages 2m --tlb haswell --csv curve.csv --plot curve.svg
  fastmmu tlb-curve big.champsim.zst --sample 0.01
  fastmmu tlb-curve a.lackey b.lackey --switch-every 20000 --pcid
"""


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give a number above 0, at most 1, as in 0.01")
    return value


def _sets(text: str) -> list[int]:
    numbers = [int(word) if word.strip().isdigit() else 0 for word in text.split(",")]
    if any(n < 2 or n & (n - 1) or n > 1 << 20 for n in numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of sets are powers of two from 2 on, as in 64,128,256")
    return numbers


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "tlb-curve",
        help="TLB misses at every size, from one pass",
        usage="fastmmu tlb-curve [options] [TRACE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared.add_traces(parser, shared.RUNS)
    parser.add_argument("--pages", choices=("4k", "2m"), default="4k", help="2m: every page is 2 MB; default: 4k")
    parser.add_argument("--pcid", action="store_true", help="switches between processes flush nothing")
    parser.add_argument("--sample", type=_share, default=1.0, metavar="SHARE", help="of the pages; default: 1, exact")
    parser.add_argument("--l1-sets", type=_sets, metavar="LIST", help="curves of the first level; default 4,8,...,64")
    parser.add_argument("--l2-sets", type=_sets, metavar="LIST", help="and of the second; default 32,64,...,512")
    parser.add_argument("--ways", type=shared.count(1), metavar="N", help="up to so many ways each; default: 32")
    parser.add_argument("--most", type=shared.count(1), metavar="N", help="entries of the longest curve (131072)")
    shared.add_tlb(parser)
    shared.add_files(parser)
    shared.add_quiet(parser)
    parser.add_argument("--plot", metavar="FILE", help="the curves as .png, .svg or .pdf (needs fastmmu[plot])")
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.report.curve import curve_plot, curve_rows, curve_table
    from fastmmu.report.figure import check_picture
    from fastmmu.study.curve import tlb_curve
    from fastmmu.tlb.geometry import geometry

    given = {"l1_sets": options.l1_sets, "l2_sets": options.l2_sets, "ways": options.ways, "limit": options.most}
    tlb = geometry(
        options.tlb or "skylake",
        l1d=options.l1d,
        l1i=options.l1i,
        stlb=options.stlb,
        replacement=options.replacement,
    )
    shared.check_files(options)
    if options.plot is not None:
        check_picture(options.plot)
    curves = []
    for trace in shared.traces(options):
        with progress(quiet=options.quiet) as report:
            curves.append(
                tlb_curve(
                    trace,
                    tlb,
                    pages=options.pages,
                    pcid=options.pcid,
                    sample=options.sample,
                    progress=lambda n, t=trace: report(t.name, t.progress(), n),  # type: ignore[misc]
                    **{name: value for name, value in given.items() if value is not None},
                )
            )
        if not shared.to_stdout(options):
            terminal.say(curve_table(curves[-1], colour=terminal.colour()) + "\n")
    shared.write_rows(options, [row for found in curves for row in curve_rows(found)], "curves")
    if options.plot is not None:
        curve_plot(curves, options.plot)
    return 0
