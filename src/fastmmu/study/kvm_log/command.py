"""`fastmmu kvm-log`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from fastmmu.cli import experiment, interruption, terminal
from fastmmu.cli import options as shared
from fastmmu.cli.progress import UntilInterrupted, progress, step
from fastmmu.study.schemes import KVM_LOG
from fastmmu.trace.names import printable

if TYPE_CHECKING:
    from fastmmu.study.kvm_log.table import Read
    from fastmmu.trace.kvm_log import KvmLog

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] LOG ..."

DESCRIPTION = """\
What a log of KVM's trace points says: VM exits by reason, page faults (EPT violations, nested page faults) by access
and by what they needed, pages that faulted again and why, rates over time. Beside it, what the model makes of it: the
page faults go through the MMU in their order under other policies, and the exits that each leaves are counted.
"""

EPILOG = """\
examples:
  trace-cmd record -e kvm sleep 10; trace-cmd report >kvm.txt
  fastmmu kvm-log kvm.txt --plot kvm.svg
  perf record -e 'kvm:*' -a sleep 10; perf script >kvm.txt
  fastmmu kvm-log kvm.txt --policies 4k,2m,2m-pml --csv kvm.csv

A log has the accesses that faulted, no others: a policy that maps more is counted exactly; faults that one would have
beyond the log's are not known.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "logs", nargs="+", metavar="LOG", help="text of ftrace, trace-cmd report or perf script, also compressed"
    )
    parser.add_argument(
        "--policies", type=shared.words(tuple(KVM_LOG)), default=list(KVM_LOG), metavar="LIST",
        help=f"of {', '.join(KVM_LOG)} (all)",
    )  # fmt: skip
    parser.add_argument(
        "--log-from", type=shared.share, default=0.5, metavar="SHARE",
        help="where writes are logged: from this part of the faults on (0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--host-pages", type=shared.pages(*shared.HOST_PAGES), metavar="|".join(shared.HOST_PAGES),
        help="backing of the host, for all policies",
    )  # fmt: skip
    experiment.add_results(parser, "rates over time, and what each policy leaves,", "a row a count")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.study.kvm_log.table import kvm_log_plot, kvm_log_rows, kvm_log_table
    from fastmmu.trace.kvm_log_read import read_kvm_log

    experiment.check(options)
    found: list[Read] = []
    interrupted = False
    for path in options.logs:
        with progress(quiet=options.quiet) as report:
            read = partial(read_kvm_log, path, progress=partial(report, f"reading {printable(path)}"))
            log = step(read)
        interrupted = _replay(options, log, found)
        for note in log.notes():
            terminal.complain(f"fastmmu: {printable(path)}: {note}")
        if not shared.to_stdout(options):
            terminal.say(kvm_log_table(found[-1], width=terminal.width(), colour=terminal.colour()))
        if interrupted:
            break
    shared.write_rows(options, kvm_log_rows(found), "counts")
    if options.plot is not None:
        kvm_log_plot(found, options.plot)
    if interrupted and not shared.to_stdout(options):
        terminal.say("interrupted: what is not here was not finished")
    return interruption.code() if interrupted else 0


def _replay(options: argparse.Namespace, log: KvmLog, found: list[Read]) -> bool:
    """Add the log and its faults under each policy; whether a signal came."""
    from fastmmu.study.kvm_log.run import replay_faults, runs
    from fastmmu.study.kvm_log.table import Read

    read = Read(log, [])
    found.append(read)
    if not runs(log).any():
        return False
    fields = {} if options.host_pages is None else {"host_pages": options.host_pages}
    with progress(quiet=options.quiet) as report:
        steps = UntilInterrupted(
            replay_faults(
                log,
                options.policies,
                log_from=options.log_from,
                progress=lambda policy, part, n: report(f"{log.name}, {policy}", part, n),
                **fields,
            )
        )
        read.policies.extend(steps)
    return steps.happened
