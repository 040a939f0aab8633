"""`fastmmu diff`: two files of results, or two address spaces."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmu.cli import options as shared
from fastmmu.cli import space, terminal
from fastmmu.errors import ConfigError

if TYPE_CHECKING:
    from fastmmu.space.space import AddressSpace

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] FIRST SECOND"

DESCRIPTION = """\
Compares two files of results (--csv, --json or --parquet of any command): a line for each figure that differs. Left
out is in what two runs of the same thing differ: seconds (wall time), and what named them: path, command, fastmmu
(version). Rows go together by their texts, such as trace, scheme, costs.

Of two recorded guests or images of physical memory it compares what their address spaces map: pages that only the
second has, that only the first has, and that lead elsewhere or with other rights.
"""

EPILOG = """\
examples:
  fastmmu diff yesterday.csv today.csv
  fastmmu diff a.json b.json --leave-out seconds,path,command,fastmmu,content
  fastmmu diff before.vmcore after.vmcore                   what a kernel has mapped meanwhile
  fastmmu diff a.raw b.raw --cr3 1c0a000                    raw images
  fastmmu diff vmcore vmcore --second-cr3 1c0a000           two processes of one image

Exit code: 0 equal, 1 something differs.
"""

_RESULTS = (".csv", ".json", ".parquet")
_HEAD = 4096


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("first", metavar="FIRST", help="a file of results, a recorded guest, an image of memory")
    parser.add_argument("second", metavar="SECOND", help="another one: of the same command, a later one")
    parser.add_argument(
        "--leave-out",
        metavar="LIST",
        help="of results: columns that may differ, in place of seconds,path,command,fastmmu; '' compares all",
    )
    spaces = parser.add_argument_group("of address spaces")
    spaces.add_argument(
        "--software", action="store_true", help="bits that hardware ignores count, accessed and dirty flags too"
    )
    spaces.add_argument("--limit", type=shared.count(0), default=40, metavar="N", help="N ranges each (40); 0: all")
    spaces.add_argument("--second-cr3", type=shared.hexadecimal, metavar="CR3", help="root of the second one's tables")
    spaces.add_argument("--second-cpu", type=shared.count(0), metavar="N", help="registers of CPU N of the second one")
    space.add_registers(parser)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    kinds = [_is_memory(place) for place in (options.first, options.second)]
    if kinds[0] != kinds[1]:
        memory, other = (options.first, options.second) if kinds[0] else (options.second, options.first)
        raise ConfigError(f"{memory} is memory and {other} is a file of results; give two of the same")
    return _of_spaces(options) if kinds[0] else _of_results(options)


def _is_memory(place: str) -> bool:
    """Whether it is no file of results: a directory, or bytes that are no text."""
    path = Path(place)
    if path.is_dir():
        return True
    if path.suffix in _RESULTS or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return b"\0" in head or not head.isascii()


def _of_results(options: argparse.Namespace) -> int:
    from fastmmu.report.differences import LEFT_OUT, differences, read_rows

    left_out = LEFT_OUT if options.leave_out is None else [word.strip() for word in options.leave_out.split(",")]
    first, second = read_rows(options.first), read_rows(options.second)
    found = differences(first, second, left_out)
    terminal.say("\n".join(found) if found else f"{len(first):,} rows are equal")
    return 1 if found else 0


def _of_spaces(options: argparse.Namespace) -> int:
    if options.leave_out is not None:
        raise ConfigError("--leave-out is for files of results; of address spaces all is compared")
    first = _space(options.first, options)
    given = {"cr3": options.second_cr3, "cpu": options.second_cpu}
    later = argparse.Namespace(**{**vars(options), **{name: n for name, n in given.items() if n is not None}})
    if options.second_cpu is not None and options.second_cr3 is None:
        later.cr3 = None
    second = _space(options.second, later)
    found = first.diff(second, software=options.software)
    ept = first.eptp is not None
    _show("only the second maps", found.added, options.limit, ept=ept)
    _show("only the first maps", found.gone, options.limit, ept=ept)
    _show("both map, and otherwise: the first", found.before, options.limit, ept=ept)
    _show("and the second", found.after, options.limit, ept=ept)
    terminal.say(f"{len(found.added):,} pages added, {len(found.gone):,} gone, {len(found.before):,} changed")
    return 1 if found else 0


def _space(place: str, options: argparse.Namespace) -> AddressSpace:
    from fastmmu.space.space import AddressSpace

    memory, state, _ = space.memory_and_state(place, options)
    eptp = space.eptp_of(options)
    space.say_if_empty(memory, state, eptp)
    return AddressSpace(memory, state, eptp)


def _show(title: str, rows: Any, limit: int, *, ept: bool) -> None:
    from fastmmu.report import mappings

    if not len(rows):
        return
    width = terminal.width()
    terminal.say(f"{title}:\n{mappings.heading(ept=ept, width=width)}")
    found = list(mappings.ranges([rows]))
    shown = found[:limit] if limit else found
    for text in mappings.lines(shown, ept=ept, width=width):
        terminal.say(text)
    if len(shown) < len(found):
        terminal.say(f"  and {len(found) - len(shown):,} more ranges; --limit 0 shows all")
    terminal.say("")
