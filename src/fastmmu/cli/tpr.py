"""`fastmmu tpr`: the ways of handling the task-priority register, side by side."""

from __future__ import annotations

import argparse
from typing import Any

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.cli.progress import progress

__all__ = ["add", "handle"]

WORKLOADS = ("winxp", "win2003", "linux")
WAYS = ("native", "trap", "patch", "flexpriority", "flexpriority-slides", "apicv")

_DESCRIPTION = """\
Puts the TPR traffic and the interrupts of a kind of guest between the accesses of a trace, and runs it with the TPR
handled by trapping, by binary patching, by FlexPriority (the threshold by KVM's rule of today and by that of the
slides) and by APICv. A row each: exits by cause, spurious exits, interrupts with their latency in accesses, IPIs and
how many took no exit, modelled cycles. The rates of the workloads are estimates (help(fastmmu.trace.tpr) names their
sources); the options change them.
"""

_EPILOG = """\
examples:
  fastmmu tpr
  fastmmu tpr app.lackey.xz --workload win2003 --mmu shadow
  fastmmu tpr --changes 2000 --interrupts 100 --ways trap,flexpriority,flexpriority-slides --json -
  fastmmu tpr --plot tpr.svg --generation merom
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "tpr",
        help="the task-priority register: trap, patch, FlexPriority, APICv",
        usage="fastmmu tpr [options] [TRACE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workload", choices=WORKLOADS, default="winxp", help="the guest; default: winxp")
    known = ",".join(WAYS)
    parser.add_argument("--ways", type=shared.words(WAYS), default=list(WAYS), metavar="LIST", help=f"out of {known}")
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
    shared.add_files(parser)
    shared.add_quiet(parser)
    parser.add_argument("--plot", metavar="FILE", help="exits and cycles as .png, .svg or .pdf (needs fastmmu[plot])")
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.report.figure import check_picture
    from fastmmu.report.tpr import tpr_plot, tpr_rows, tpr_table
    from fastmmu.study.tpr import tpr_study
    from fastmmu.trace.tpr import tpr_profile

    names = ("changes", "reads", "held", "interrupts", "ipis", "timer", "sites", "seed")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    profile = tpr_profile(options.workload, **given)
    shared.check_files(options)
    if options.plot is not None:
        check_picture(options.plot)
    costs, fields, rows = shared.cost_model(options), shared.config_fields(options), []
    for trace in shared.traces(options):
        with progress(quiet=options.quiet) as report:
            results = tpr_study(
                trace,
                profile,
                options.ways,
                costs=costs,
                progress=lambda c, n, t=trace: report(f"{t.name} {c.tpr}", t.progress(), n),  # type: ignore[misc]
                mmu=options.mmu,
                **fields,
            )
        if not shared.to_stdout(options):
            terminal.say(tpr_table(results, colour=terminal.colour()) + "\n")
        rows += tpr_rows(results)
        if options.plot is not None:
            tpr_plot(results, options.plot)
    shared.write_rows(options, rows, "ways")
    return 0
