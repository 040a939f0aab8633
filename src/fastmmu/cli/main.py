"""Entry point: parse, dispatch, and every error as one line."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import fastmmu
from fastmmu.cli import interruption, terminal
from fastmmu.cli.commands import commands
from fastmmu.cli.settings import apply
from fastmmu.errors import FastmmuError
from fastmmu.trace.names import printable

__all__ = ["main", "program"]

DONE, ERROR = 0, 2
BROKEN_PIPE = 141  # 128 + SIGPIPE

_EPILOG = """\
examples:
  fastmmu record -- ls -l /                  a program of yours, under Valgrind, as ls.arrow
  fastmmu compare ls.arrow
  fastmmu compare                            the bundled traces under every scheme
  fastmmu compare app.lackey.xz --pages 4k,thp
  fastmmu compare a.arrow b.arrow --switch-every 50000 --exit-every 10000
  fastmmu run app.npy --mmu ept --vpid --tlb haswell --json -
  fastmmu tlb-curve app.lackey.xz            misses of TLBs of every size
  fastmmu replay linux.rec.zst               a whole Linux, each physical address compared
  fastmmu migrate app.lackey.xz              live migration, by method of dirty logging
  fastmmu overcommit app.lackey.xz           hosts with less memory than the guest uses
  fastmmu kvm-log kvm.txt                    a log of real KVM, its page faults under other policies
  fastmmu study agile-paging                 an experiment of the literature, ours and published
  fastmmu boot                               real mode to 5-level paging and back
  fastmmu walk                               a nested walk of 24 references, drawn
  fastmmu maps guests/l4_user                every mapping of a recorded guest
  fastmmu trace info app.lackey.gz

`fastmmu COMMAND --help` has the options and examples of each.
Exit codes: 0 done, 1 a replay found mismatches, overcommit a guest that came out differently, or a study does not hold,
2 an error (one line on stderr), 130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP; of `record` that of the
program. What was finished until then is printed and written.
"""


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        """Where that fails it is told; argparse lets it go."""
        terminal.put(message)

    def error(self, message: str) -> NoReturn:
        """One line, like every other error."""
        terminal.complain(f"fastmmu: error: {printable(message)}; see {self.prog} --help")
        raise SystemExit(ERROR)


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
    """Run a command line as a function, in which a signal is what the caller makes of it; returns the exit code.

    :param argv: the words behind `fastmmu`; None: those of the process, as :func:`program`.
    :raises SystemExit: as argparse does, after --help and where it cannot parse.
    """
    if argv is None:
        return program()
    try:
        try:
            own = argv.index("--") if "--" in argv else len(argv)  # behind it is what is no option
            words = [*_values_joined(argv[:own]), *argv[own:]]
            chosen = next((word for word in words if not word.startswith("-")), "")
            for word in words[: len(words) - len(argv) + own]:
                if re.fullmatch(r"--[a-z0-9-]+=--", word):  # of which argparse makes an empty list
                    _Parser(prog=f"fastmmu {chosen}".rstrip()).error(f"argument {word[:-3]}: '--' is no value")
            top = parser(chosen)
            options, unknown = top.parse_known_args(words)
            if getattr(options, "config", None) is not None:
                apply(options.parser, options.config)
                options, unknown = top.parse_known_args(words)
            if unknown:
                _Parser(prog=f"fastmmu {words[0]}").error(f"unrecognized arguments: {' '.join(unknown)}")
            options.command_line = shlex.join(["fastmmu", *words])  # for the files that it writes
            code: int = options.handler(options)
            for trace in getattr(options, "opened", ()):
                for note in trace.notes():
                    terminal.complain(f"fastmmu: {printable(trace.path or trace.name)}: {note}")
        finally:  # --help, too, may have nowhere to go
            terminal.flush()
    except KeyboardInterrupt:
        terminal.complain("fastmmu: interrupted")
        return interruption.code()
    except BrokenPipeError:  # the reader has what it wanted: nothing to say, and nothing to flush at exit
        terminal.drop(sys.stdout)
        return BROKEN_PIPE
    except (FastmmuError, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.filename == terminal.STDOUT:
            terminal.drop(sys.stdout)
        terminal.complain(f"fastmmu: error: {describe(error)}")
        return ERROR
    return code


def program() -> int:
    """Run the command line of the process, with its signals and standard streams; returns the exit code."""
    interruption.take()
    try:
        if terminal.hold():
            code = main(sys.argv[1:])
        else:
            terminal.complain("fastmmu: error: standard output is closed; for no output at all write >/dev/null")
            code = ERROR
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else DONE
    return interruption.done(code)


def describe(error: BaseException) -> str:
    """An error as one line, in which blanks are what they are."""
    if isinstance(error, OSError) and not isinstance(error, FastmmuError) and error.strerror:
        where = f"{printable(str(error.filename))}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    if isinstance(error, MemoryError) and not isinstance(error, FastmmuError):
        return printable(f"out of memory: {error}".removesuffix(": "))
    return printable(str(error)) or type(error).__name__
