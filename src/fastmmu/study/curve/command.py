"""`fastmmu tlb-curve`: misses of TLBs of every size, from one pass over a trace."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastmmu.cli import experiment
from fastmmu.cli import options as shared

if TYPE_CHECKING:
    from fastmmu.cli.progress import Report
    from fastmmu.trace import Trace

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] [TRACE ...]"

DESCRIPTION = """\
How often TLBs of every size would miss on a trace: fully associative ones, and set-associative ones by their number
of sets. One pass, from the distances between uses of a page in the order of their last use (LRU). Exact, and equal to
what `fastmmu run --premapped` counts at each size; with --sample the fully associative curves are estimates, with
their standard error. A trace is counted in parts, by threads or by the workers of an executor; the curves are those of
one pass, bit for bit. The second level sees the misses of the first level that --tlb, --l1d and --l1i describe.
"""

EPILOG = """\
examples:
  fastmmu tlb-curve app.lackey.xz
  fastmmu tlb-curve app.lackey.xz --pages 2m --tlb haswell --csv curve.csv --plot curve.svg
  fastmmu tlb-curve big.champsim.zst --sample 0.01
  fastmmu tlb-curve big.arrow --executor dask:tcp://head:8786 --parts 64
  fastmmu tlb-curve a.lackey b.lackey --switch-every 20000 --pcid
"""


def _sets(text: str) -> list[int]:
    numbers = [int(word) if word.strip().isdigit() else 0 for word in text.split(",")]
    if any(n < 2 or n & (n - 1) or n > 1 << 20 for n in numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of sets are powers of two from 2 on, as in 64,128,256")
    return numbers


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    shared.add_traces(parser, shared.RUNS)
    shared.add_pages(parser, "4k", "2m")
    parser.add_argument("--pcid", action="store_true", help="switches between processes flush nothing")
    parser.add_argument(
        "--sample",
        type=shared.share,
        default=1.0,
        metavar="SHARE",
        help="of the pages, as 0.01 or 1%%; default: 1, exact",
    )
    parser.add_argument("--l1-sets", type=_sets, metavar="LIST", help="curves of the first level; default 4,8,...,64")
    parser.add_argument("--l2-sets", type=_sets, metavar="LIST", help="and of the second; default 32,64,...,512")
    parser.add_argument("--ways", type=shared.count(1), metavar="N", help="up to so many ways each; default: 32")
    parser.add_argument("--most", type=shared.count(1), metavar="N", help="entries of the longest curve (131072)")
    shared.add_tlb(parser)
    shared.add_jobs(parser)
    parser.add_argument(
        "--executor",
        metavar="WORD",
        help="count parts of the trace there, as of `fastmmu sweep`: processes:4, dask:ADDRESS",
    )
    parser.add_argument("--parts", type=shared.count(1), metavar="N", help="parts of it; default: two a worker")
    experiment.add_results(parser, "the curves")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.study.curve.run import Curves, tlb_curve
    from fastmmu.study.curve.table import curve_plot, curve_rows, curve_table
    from fastmmu.tlb.geometry import geometry

    sizes = {"l1_sets": options.l1_sets, "l2_sets": options.l2_sets, "ways": options.ways, "limit": options.most}
    given = {name: value for name, value in sizes.items() if value is not None}
    tlb = geometry(
        options.tlb or "skylake",
        l1d=options.l1d,
        l1i=options.l1i,
        stlb=options.stlb,
        replacement=options.replacement,
        psc=options.psc,
        epsc=options.epsc,
        gpm=options.gpm,
    )
    experiment.check(options)

    def study(trace: Trace, report: Report) -> Iterator[Curves]:
        yield tlb_curve(
            trace,
            tlb,
            pages=options.pages,
            pcid=options.pcid,
            sample=options.sample,
            progress=lambda n: report(trace.name, trace.progress(), n),
            jobs=options.jobs,
            executor=options.executor,
            parts=options.parts,
            **given,
        )

    return experiment.run(
        options,
        study,
        table=lambda found, /, *, width, colour: curve_table(found[0], width=width, colour=colour),
        rows=lambda found: curve_rows(found[0]),
        key="curves",
        plot=curve_plot,
    )[1]
