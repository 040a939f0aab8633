"""What the commands of studies share: a study of each trace in turn, its table, and files and a picture at the end."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fastmmu.cli import interruption, terminal
from fastmmu.cli import options as shared
from fastmmu.cli.progress import Report, UntilInterrupted, progress
from fastmmu.errors import FastmmuError

if TYPE_CHECKING:
    from fastmmu.trace import Trace

__all__ = ["add_results", "add_size", "check", "run"]

T = TypeVar("T")
T_in = TypeVar("T_in", contravariant=True)


class Table(Protocol[T_in]):
    """Makes a text of the results of a trace."""

    def __call__(self, found: Sequence[T_in], /, *, width: int, colour: bool) -> str: ...


def add_results(parser: argparse.ArgumentParser, drawn: str, row: str = "a row a run") -> None:
    """--json, --csv, --parquet, --quiet and --plot; `drawn`: what the picture shows."""
    shared.add_files(parser, row)
    shared.add_quiet(parser)
    parser.add_argument("--plot", metavar="FILE", help=f"{drawn} as .png, .svg or .pdf (needs fastmmu[plot])")
    add_size(parser)


def add_size(parser: Any) -> None:
    """--size, of pictures."""
    parser.add_argument(
        "--size", choices=("column", "page", "slide"), default="page", help="where a picture goes; default: page"
    )


def check(options: argparse.Namespace) -> None:
    """Refuse before the run what could not be written after it."""
    from fastmmu.report.figure import check_picture, sized

    shared.check_files(options)
    if options.plot is not None:
        sized(options.size)
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
    """All results, and the exit code. What was finished before a signal or an error is shown and written.

    :param study: yields the results of a trace one by one. :param rows: of the results of a trace. :param key: what
        JSON calls them. :param plot: draws all of them.
    """
    every: list[list[T]] = []
    interrupted = False
    failure: Exception | None = None
    for trace in shared.traces(options):
        found: list[T] = []
        with progress(quiet=options.quiet) as report:
            steps = UntilInterrupted(study(trace, report))
            try:
                for result in steps:
                    found.append(result)  # noqa: PERF402 - one by one, as they come
            except FastmmuError as error:
                failure = error
        interrupted = steps.happened
        if found:
            every.append(found)
        if found and not shared.to_stdout(options):
            try:
                terminal.say(table(found, width=terminal.width(), colour=terminal.colour()).rstrip("\n") + "\n")
            except OSError as error:
                failure = failure or error
        if interrupted or failure is not None:
            break
    if interrupted and not every:
        raise KeyboardInterrupt
    if every or failure is None:
        shared.write_rows(options, [row for found in every for row in rows(found)], key)
    results = [result for found in every for result in found]
    if options.plot is not None and results:
        plot(results, options.plot)
    if failure is not None:
        raise failure
    if interrupted and not shared.to_stdout(options):
        terminal.say("interrupted: what is not here was not finished")
    return results, interruption.code() if interrupted else 0
