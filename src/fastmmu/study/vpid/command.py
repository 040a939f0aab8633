"""`fastmmu vpid`: what VPID is worth, by how often the guest exits."""

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
TLB misses of a trace with and without VPID, at several rates of VM exits, and what is predicted without it:
misses with VPID + exits x resident working set (the pages that the TLB holds at an exit and that are used before
the next one, measured in the run with VPID).
"""

EPILOG = """\
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


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    shared.add_traces(parser, shared.RUNS)
    parser.add_argument("--rates", type=_rates, metavar="LIST", help="exits per 1000 accesses; 0.03,0.1,0.3,1,3")
    parser.add_argument("--mmu", choices=("shadow", "ept"), default="ept", help="default: ept")
    shared.add_pages(parser, "4k", "2m")
    shared.add_kvm(parser)
    shared.add_vmm(parser)
    shared.add_tlb(parser)
    shared.add_jobs(parser)
    experiment.add_results(parser, "the misses")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.machine.config import Config
    from fastmmu.study.vpid.run import RATES, VpidPoint, vpid_points
    from fastmmu.study.vpid.table import vpid_plot, vpid_rows, vpid_table

    config = Config(mmu=options.mmu, pages=options.pages, **shared.config_fields(options))
    experiment.check(options)

    def study(trace: Trace, report: Report) -> Iterator[VpidPoint]:
        def done(rate: float, events: int) -> None:
            report(f"{trace.name}, {rate:g} exits/1000", trace.progress(), events)

        return vpid_points(trace, config, options.rates or RATES, progress=done, jobs=options.jobs)

    return experiment.run(options, study, table=vpid_table, rows=vpid_rows, key="points", plot=vpid_plot)[1]
