"""`fastmmu tpr`: the ways of handling the task-priority register, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastmmu.cli import experiment
from fastmmu.cli import options as shared
from fastmmu.study.schemes import TPR

if TYPE_CHECKING:
    from fastmmu.cli.progress import Report
    from fastmmu.trace import Trace

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]


USAGE = "[options] [TRACE ...]"

DESCRIPTION = """\
Puts the TPR traffic and the interrupts of a kind of guest between the accesses of a trace, and runs it with the TPR
handled by trapping, by binary patching, by FlexPriority (the threshold by KVM's rule of today and by that of the
slides) and by APICv. A row each: exits by cause, spurious exits, interrupts with their latency in accesses, IPIs and
how many took no exit, modelled cycles. The rates of the workloads are estimates (help(fastmmu.trace.tpr) names their
sources); the options change them.
"""

EPILOG = """\
examples:
  fastmmu tpr
  fastmmu tpr app.lackey.xz --workload win2003 --mmu shadow
  fastmmu tpr --changes 2000 --interrupts 100 --ways trap,flexpriority,flexpriority-slides --json -
  fastmmu tpr --plot tpr.svg --generation merom
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--workload", choices=shared.WORKLOADS, default="winxp", help="the guest; default: winxp")
    known = ",".join(TPR)
    parser.add_argument(
        "--ways", type=shared.words(tuple(TPR)), default=list(TPR), metavar="LIST", help=f"out of {known}"
    )
    parser.add_argument("--mmu", choices=("ept", "shadow"), default="ept", help="of the VMM; default: ept")
    rates = parser.add_argument_group("the workload, per million accesses")
    rates.add_argument("--changes", type=float, metavar="N", help="raises of the TPR, each lowered again")
    rates.add_argument("--reads", type=float, metavar="N", help="reads of the TPR for each raise")
    rates.add_argument("--held", type=float, metavar="N", help="mean accesses until it is lowered")
    rates.add_argument("--interrupts", type=float, metavar="N", help="interrupts of devices")
    rates.add_argument("--ipis", type=float, metavar="N", help="interprocessor interrupts, which it sends itself")
    rates.add_argument("--timer", type=float, metavar="N", help="times that the timer is armed by a deadline")
    rates.add_argument("--sites", type=shared.count(1), metavar="N", help="instructions that access the TPR")
    rates.add_argument("--seed", type=shared.count(0), metavar="N", help="of the random numbers; default: 1")
    shared.add_traces(parser, shared.RUNS)
    shared.add_config(parser, apic=False)
    shared.add_jobs(parser)
    experiment.add_results(parser, "exits and cycles")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.machine.config import Config
    from fastmmu.machine.result import Result
    from fastmmu.study.tpr.run import tpr_runs
    from fastmmu.study.tpr.table import tpr_plot, tpr_rows, tpr_table
    from fastmmu.trace.tpr import tpr_profile

    names = ("changes", "reads", "held", "interrupts", "ipis", "timer", "sites", "seed")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    profile = tpr_profile(options.workload, **given)
    experiment.check(options)
    costs = shared.cost_model(options)
    fields: dict[str, Any] = {"mmu": options.mmu, **shared.config_fields(options)}

    def study(trace: Trace, report: Report) -> Iterator[Result]:
        def done(config: Config, events: int) -> None:
            report(f"{trace.name} {config.tpr}", trace.progress(), events)

        return tpr_runs(trace, profile, options.ways, costs=costs, progress=done, jobs=options.jobs, **fields)

    return experiment.run(options, study, table=tpr_table, rows=tpr_rows, key="ways", plot=tpr_plot)[1]
