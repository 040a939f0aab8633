"""What the commands of studies share: a study of each trace in turn, its table, and files and a picture at the end."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.cli.progress import INTERRUPTED, Report, progress, until_interrupted

if TYPE_CHECKING:
    from fastmmu.trace import Trace

__all__ = ["add_results", "check", "run"]

T = TypeVar("T")
T_in = TypeVar("T_in", contravariant=True)


class Table(Protocol[T_in]):
    """Makes a text of the results of a trace."""

    def __call__(self, found: Sequence[T_in], /, *, colour: bool) -> str: ...


def add_results(parser: argparse.ArgumentParser, drawn: str, row: str = "a row a run") -> None:
    """--json, --csv, --parquet, --quiet and --plot; `drawn`: what the picture shows."""
    shared.add_files(parser, row)
    shared.add_quiet(parser)
    parser.add_argument("--plot", metavar="FILE", help=f"{drawn} as .png, .svg or .pdf (needs fastmmu[plot])")


def check(options: argparse.Namespace) -> None:
    """Refuse before the run what could not be written after it."""
    from fastmmu.report.figure import check_picture

    shared.check_files(options)
    if options.plot is not None:
        check_picture(options.plot)


def run(
    options: argparse.Namespace,
    study: Callable[[Trace, Report], Iterable[T]],
    *,
    table: Table[T],
    rows: Callable[[Sequence[T]], list[dict[str, Any]]],
    key: str,
    plot: Callable[[Sequence[T], str], None],
) -> tuple[list[T], int]:
    """All results, and the exit code. What was finished before Ctrl-C is shown and written.

    :param study: yields the results of a trace one by one. :param key: what JSON calls the rows.
    """
    every: list[T] = []
    interrupted = False
    for trace in shared.traces(options):
        found: list[T] = []
        with progress(quiet=options.quiet) as report, until_interrupted() as interruption:
            found.extend(study(trace, report))  # one by one
        if found and not shared.to_stdout(options):
            terminal.say(table(found, colour=terminal.colour()).rstrip("\n") + "\n")
        every += found
        interrupted = interruption.happened
        if interrupted:
            break
    if interrupted and not every:
        raise KeyboardInterrupt
    shared.write_rows(options, rows(every), key)
    if options.plot is not None:
        plot(every, options.plot)
    return every, INTERRUPTED if interrupted else 0
