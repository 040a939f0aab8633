"""`fastmmu boot`: a guest that changes its paging mode, step by step."""

from __future__ import annotations

import argparse

from fastmmu.cli import interruption, terminal
from fastmmu.cli import options as shared
from fastmmu.cli.progress import UntilInterrupted
from fastmmu.study.schemes import BOOT

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options]"

DESCRIPTION = """\
A guest boots: real mode, protected mode, 32-bit, PAE, 4-level and 5-level paging, and back to real mode, each with
tables that it built in the mode before. Step by step: the registers as the guest has them, those of the hardware
meanwhile, and the exits. Without unrestricted guest KVM makes a virtual-8086 task of real mode, and while the guest
does not page an identity table stands in CR3.
"""

EPILOG = """\
examples:
  fastmmu boot
  fastmmu boot --schemes ept,unrestricted --vpid --csv steps.csv
  fastmmu boot --schemes shadow,ept --kvm 6.12
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--schemes",
        type=shared.words(tuple(BOOT)),
        default=["native", "ept", "unrestricted"],
        metavar="LIST",
        help=f"of {', '.join(BOOT)}; default: native,ept,unrestricted",
    )
    parser.add_argument("--vpid", action="store_true", help="the guest's translations are tagged with a VPID")
    shared.add_kvm(parser, "slides; of unrestricted 6.1")
    shared.add_vmm(parser)
    shared.add_files(parser, "a row a step")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 where an invariant fails or a guest could tell the schemes apart."""
    from fastmmu.study.boot.run import boot
    from fastmmu.study.boot.table import boot_rows, boot_table

    fields = shared.config_fields(options)
    shared.check_files(options)
    found = []
    native = boot("native")
    wrong = 0
    steps = UntilInterrupted(boot(scheme, vpid=options.vpid, **fields) for scheme in options.schemes)
    try:
        for run in steps:
            found.append(run)
            wrong += sum(len(step.broken) for step in run.steps)
            told = [
                step.name for step, same in zip(run.steps, native.steps, strict=True) if step.outcomes != same.outcomes
            ]
            wrong += len(told)
            if not shared.to_stdout(options):
                terminal.say(boot_table(run, width=terminal.width(), colour=terminal.colour()))
                for name in told:
                    terminal.say(f"the guest sees another outcome than natively in: {name}\n")
        if steps.happened and not found:
            raise KeyboardInterrupt
    finally:  # also where the table could not be printed
        if found:
            shared.write_rows(options, boot_rows(found), "steps")
    if steps.happened:
        return interruption.code()
    return 1 if wrong else 0
