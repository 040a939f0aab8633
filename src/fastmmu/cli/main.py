"""Entry point: parse, dispatch, and every error as one line."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

import fastmmu
from fastmmu.cli.commands import commands
from fastmmu.cli.progress import INTERRUPTED
from fastmmu.errors import FastmmuError

__all__ = ["main"]

ERROR = 2
BROKEN_PIPE = 141  # 128 + SIGPIPE

_EPILOG = """\
examples:
  fastmmu compare                            the bundled traces under every scheme
  fastmmu compare app.lackey.xz --pages 4k,thp
  fastmmu compare a.arrow b.arrow --switch-every 50000 --exit-every 10000
  fastmmu run app.npy --mmu ept --vpid --tlb haswell --json -
  fastmmu tlb-curve app.lackey.xz            misses of TLBs of every size
  fastmmu replay linux.rec.zst               a whole Linux, each physical address compared
  fastmmu migrate app.lackey.xz              live migration, by method of dirty logging
  fastmmu overcommit app.lackey.xz           hosts with less memory than the guest uses
  fastmmu boot                               real mode to 5-level paging and back
  fastmmu walk                               a nested walk of 24 references, drawn
  fastmmu maps guests/l4_user                every mapping of a recorded guest
  fastmmu trace info app.lackey.gz

`fastmmu COMMAND --help` has the options and examples of each.
Exit codes: 0 done, 1 a replay found mismatches or overcommit a guest that came out differently, 2 an error (one line on
stderr), 130 interrupted (what was finished is printed and written).
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, like every other error."""
        self.exit(ERROR, f"fastmmu: error: {message}; see {self.prog} --help\n")


def parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command line, which sets `handler`; of the command `chosen` alone (None: of each) it has the
    options."""
    top = _Parser(
        prog="fastmmu",
        usage="fastmmu COMMAND [options]",
        description="Simulates x86 memory virtualization: what a program's memory accesses cost natively,\n"
        "under shadow paging and under EPT, with and without VPID.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"fastmmu {fastmmu.__version__}")
    parsers = top.add_subparsers(prog="fastmmu", title="commands", metavar="COMMAND", required=True)
    for command in commands():
        command.add(parsers, whole=chosen in (None, command.name))
    return top


def _values_joined(argv: Sequence[str]) -> list[str]:
    """A value such as -64/4 as part of its option, where argparse would take it for one: so our message says why."""
    words: list[str] = []
    for word in argv:
        if re.match(r"-\d", word) and words and re.fullmatch(r"--[a-z0-9-]+", words[-1]):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    try:
        words = _values_joined(sys.argv[1:] if argv is None else argv)
        chosen = next((word for word in words if not word.startswith("-")), "")
        options, unknown = parser(chosen).parse_known_args(words)
        if unknown:
            _Parser(prog=f"fastmmu {words[0]}").error(f"unrecognized arguments: {' '.join(unknown)}")
        options.command_line = shlex.join(["fastmmu", *words])  # for the files that it writes
        code: int = options.handler(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("fastmmu: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has what it wanted: nothing to say, and nothing to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (FastmmuError, OSError) as error:
        print(f"fastmmu: error: {describe(error)}", file=sys.stderr)
        return ERROR
    return code


def describe(error: Exception) -> str:
    """An error as one line."""
    if isinstance(error, OSError) and not isinstance(error, FastmmuError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
