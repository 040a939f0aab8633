"""`fastmmu report`: results as a page; and `--report` of the commands that make results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastmmu.cli import terminal
from fastmmu.errors import ConfigError

if TYPE_CHECKING:
    from fastmmu.machine.result import Result

__all__ = ["DESCRIPTION", "EPILOG", "INTERVAL", "USAGE", "add", "add_report", "check_report", "handle", "write_report"]

INTERVAL = 1 << 15
"""Accesses from one point of a picture over time to the next, where nobody says."""

USAGE = "[options] RESULTS..."

DESCRIPTION = """\
Makes one HTML file of results: what was run, a table that sorts and filters, where the cycles go, pictures with their
numbers to download. It needs no network and no JavaScript to be read.
"""

EPILOG = """\
examples:
  fastmmu compare --json compare.json && fastmmu report compare.json -o compare.html
  fastmmu report study.results -o study.html        the folder of a sweep
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="a file of results, or the folder of a sweep")
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE", help="default: report.html")
    parser.add_argument("--title", help="default: the names of the results")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.report.files import check_target, write_whole
    from fastmmu.report.page import page
    from fastmmu.report.rows import gathered
    from fastmmu.report.stored import load, made_with

    check_target(options.output, "html")
    results = [result for path in options.results for result in load(path)]
    made: dict[str, list[str]] = {}
    for path in options.results:
        for name, texts in made_with(path).items():
            made.setdefault(name, []).extend(text for text in texts if text not in made.get(name, []))
    title = options.title or ", ".join(Path(path).stem for path in options.results)
    text = page(results, title=title, made=made).encode("utf-8", "backslashreplace")  # names may be no text
    write_whole(options.output, text)
    runs = len(gathered(results))
    terminal.say(f"{runs} run{'' if runs == 1 else 's'} in {options.output}, {len(text) / 1024:,.0f} KB")
    return 0


# ---- --report of other commands ----------------------------------------------------------------------------------


def add_report(parser: argparse.ArgumentParser) -> None:
    """--report."""
    parser.add_argument(
        "--report", metavar="FILE", help="an HTML page with tables and pictures (needs fastmmu[report])"
    )


def check_report(options: argparse.Namespace) -> None:
    """Refuse before the run what could not be made after it."""
    from fastmmu.report import page
    from fastmmu.report.files import check_target

    if options.report is not None:
        if getattr(options, "sample_every", None) is not None:
            raise ConfigError("--report shows whole runs; leave --sample-every out, or write its estimates with --csv")
        check_target(options.report, "html")
        page([])  # what it needs is there


def write_report(options: argparse.Namespace, results: Sequence[Result], title: str, names: Sequence[str] = ()) -> None:
    """The page, where it was asked for."""
    import fastmmu
    from fastmmu.report import page
    from fastmmu.report.files import write_whole

    if options.report is not None and results:
        made = {"fastmmu": [fastmmu.__version__], "command": [getattr(options, "command_line", "")]}
        text = page(results, title=title, made=made, names=names)
        write_whole(options.report, text.encode("utf-8", "backslashreplace"))
