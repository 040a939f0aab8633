"""`fastmmu report`: results as a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastmmu.cli import terminal

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

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
    terminal.say(f"{len(results)} results in {options.output}, {len(text) / 1024:,.0f} KB")
    return 0
