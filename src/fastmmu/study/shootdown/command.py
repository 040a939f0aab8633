"""`fastmmu shootdown`: what TLB shootdowns cost, by method and number of vCPUs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastmmu.cli import experiment
from fastmmu.cli import options as shared

if TYPE_CHECKING:
    from fastmmu.cli.progress import Report
    from fastmmu.study.shootdown.run import ShootdownPoint
    from fastmmu.trace import Trace

__all__ = ["DESCRIPTION", "EPILOG", "METHODS", "USAGE", "add", "handle"]

METHODS = ("native", "trap", "flexpriority", "apicv", "pv", "invlpgb")
"""Named here so that --help need not load what has them; tests/study/test_shootdown.py holds both together."""
LAZY = {"on": (True,), "off": (False,), "both": (True, False)}

USAGE = "[options] [TRACE ...]"

DESCRIPTION = """\
Runs each trace as the threads of one process, in turns, on more and more vCPUs. After every so many accesses the page
used last is unmapped, and vCPUs that run the process must flush: told by an interrupt (natively; with the local APIC
trapped, FlexPriority, APICv), by KVM's PV flush where they have no physical CPU, or by AMD's INVLPGB. See
docs/shootdowns.md.
"""

EPILOG = """\
examples:
  fastmmu shootdown app.lackey.xz --plot shootdown.svg --csv shootdown.csv
  fastmmu shootdown app.lackey.xz --vcpus 2,8,32 --methods apicv,pv --overcommit 2        two vCPUs a physical CPU
  fastmmu shootdown app.lackey.xz --lazy both --idle 0.5 --every 200

columns:
  vCPUs no CPU, marked, lazy   interrupted without a CPU to take it; left to the VMM; left alone, as they idle
  VM exits APIC, kicks         for the ICR and the end of interrupt; for the interrupt itself
  cycles each, of all          modelled, of a shootdown; their part of all. Refills of TLBs are in the last column alone
"""


def _numbers(text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(1 <= n <= 255 for n in found):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of vCPUs, 1..255, as in 1,2,4,8")
    return found


def _part(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no part of the turns; give 0 up to less than 1, as 0.25")
    return value


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    shared.add_traces(parser, shared.RUNS)
    parser.add_argument("--vcpus", type=_numbers, metavar="LIST", help="1,2,4,8,16,32,64")
    parser.add_argument("--methods", type=shared.words(METHODS), metavar="LIST", help=f"of {', '.join(METHODS)}; all")
    parser.add_argument(
        "--lazy", choices=tuple(LAZY), default="both", help="lazy mode of vCPUs that idle; default: both"
    )
    parser.add_argument(
        "--every",
        type=shared.count(0),
        default=1000,
        metavar="N",
        help="accesses from one unmapped page to the next; 1k",
    )
    parser.add_argument("--quantum", type=shared.count(1), default=1000, metavar="N", help="events of a turn; 1k")
    parser.add_argument("--idle", type=_part, default=0.25, metavar="PART", help="of the turns a vCPU idles; 0.25")
    parser.add_argument("--overcommit", type=shared.count(1), default=1, metavar="N", help="vCPUs a physical CPU; 1")
    shared.add_pages(parser, "4k", "2m", "thp")
    shared.add_kvm(parser, "6.1")
    shared.add_tlb(parser)
    shared.add_costs(parser)
    shared.add_jobs(parser)
    experiment.add_results(parser, "cycles by number of vCPUs")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.study.shootdown.run import METHODS, VCPUS, shootdown_points
    from fastmmu.study.shootdown.table import shootdown_plot, shootdown_rows, shootdown_table

    experiment.check(options)
    costs, fields = shared.cost_model(options), shared.config_fields(options)

    def study(trace: Trace, report: Report) -> Iterator[ShootdownPoint]:
        return shootdown_points(
            trace,
            options.vcpus or VCPUS,
            options.methods or tuple(METHODS),
            LAZY[options.lazy],
            every=options.every,
            quantum=options.quantum,
            idle=options.idle,
            overcommit=options.overcommit,
            costs=costs,
            progress=lambda name, n: report(f"{trace.name}, {name}", trace.progress(), n),
            jobs=options.jobs,
            pages=options.pages,
            **fields,
        )

    found = experiment.run(
        options, study, table=shootdown_table, rows=shootdown_rows, key="points", plot=shootdown_plot
    )
    return found[1]
