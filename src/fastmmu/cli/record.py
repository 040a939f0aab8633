"""`fastmmu record`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from fastmmu.cli import interruption, terminal
from fastmmu.cli import options as shared
from fastmmu.cli.progress import progress

if TYPE_CHECKING:
    from fastmmu.trace.record import Recording

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] -- PROGRAM [ARGUMENT ...]"

DESCRIPTION = """\
Runs a program under Valgrind's lackey and writes what it accesses: each instruction, load and store, as a trace that
every command reads. The program keeps its standard input, output and error; it runs some hundred times slower."""

EPILOG = """\
examples:
  fastmmu record -- ls -l /
  fastmmu compare ls.arrow
  fastmmu record -o sort.arrow --skip 10M --limit 50M -- sort big.txt
  fastmmu record -o make.arrow --children -- make        make.arrow, make.2.arrow, ...: a process each

What it recorded is told on standard error. The exit code is that of the program, 128 + the signal that ended it; 2 for
an error of fastmmu. Ctrl-C ends the program, what it did until then is kept: the file is complete, and says so.
The program is ended where --limit is reached, but with --children, which runs on.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="file to write, .arrow; default: PROGRAM.arrow in this folder"
    )
    parser.add_argument("--skip", type=shared.count(0), default=0, metavar="N", help="leave out the first N events")
    parser.add_argument("--limit", type=shared.count(1), metavar="N", help="at most N events")
    parser.add_argument(
        "--children", action="store_true", help="also the processes that it starts, a file each (else the first alone)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, and nothing told of what was recorded")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM [ARGUMENT ...]", help="what to run")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    import os

    from fastmmu.trace.record import record

    words = options.program[1:] if options.program[:1] == ["--"] else options.program
    out = options.out or f"{os.path.basename(words[0]) if words else ''}.arrow"
    interruption.begin()
    with progress(quiet=options.quiet or sys.stdout.isatty()) as report:  # a bar would lie in what the program prints
        made = record(
            words,
            out,
            skip=options.skip,
            limit=options.limit,
            children=options.children,
            stopped=lambda: interruption.came() and interruption.code() - 128,
            progress=lambda what, events: report(what, None, events),
        )
    if not options.quiet:
        for line in _told(made, children=options.children):
            terminal.complain(f"fastmmu: {line}")
    if made.interrupted:
        if options.quiet or not made.files:
            terminal.complain("fastmmu: interrupted")
        return interruption.code()
    if made.limited:
        return 0
    return made.status if made.status >= 0 else 128 - made.status


def _told(made: Recording, *, children: bool) -> list[str]:
    lines = []
    for file in made.files:
        many = f"{file.events:,} events, {file.instructions:,} of them instructions"
        lines.append(f"{file.path}: {many}, of {file.command or 'the program'}")
    if made.other_lines:
        lines.append(f"{made.other_lines:,} lines of Valgrind's own are no accesses; they were left out")
    if made.interrupted:
        lines.append("interrupted: the program was ended, what it did until then is kept")
    elif made.replaced and not made.limited and not children:
        lines.append("what a process did after it became another program (exec) is not recorded; --children records it")
    if made.limited:
        lines.append("the program was ended: --limit is reached")
    elif made.status < 0 and not made.interrupted:
        lines.append(f"the program was ended by signal {-made.status}")
    elif made.status > 0:
        lines.append(f"the program ended with exit code {made.status}")
    return lines
