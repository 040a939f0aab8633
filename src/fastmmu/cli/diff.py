"""`fastmmu diff`: two files of results."""

from __future__ import annotations

import argparse

from fastmmu.cli import terminal

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] FIRST SECOND"

DESCRIPTION = """\
Compares two files of results (--csv, --json or --parquet of any command): a line for each figure that differs. Left
out is in what two runs of the same thing differ: seconds (wall time), and what named them: path, command, fastmmu
(version). Rows go together by their texts, such as trace, scheme, costs.
"""

EPILOG = """\
examples:
  fastmmu diff yesterday.csv today.csv
  fastmmu diff a.json b.json --leave-out seconds,path,command,fastmmu,content

Exit code: 0 equal, 1 something differs.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("first", metavar="FIRST", help="a file of results")
    parser.add_argument("second", metavar="SECOND", help="another one, of the same command")
    parser.add_argument(
        "--leave-out",
        metavar="LIST",
        help="columns that may differ, in place of seconds,path,command,fastmmu; '' compares all",
    )


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.report.differences import LEFT_OUT, differences, read_rows

    left_out = LEFT_OUT if options.leave_out is None else [word.strip() for word in options.leave_out.split(",")]
    first, second = read_rows(options.first), read_rows(options.second)
    found = differences(first, second, left_out)
    terminal.say("\n".join(found) if found else f"{len(first):,} rows are equal")
    return 1 if found else 0
