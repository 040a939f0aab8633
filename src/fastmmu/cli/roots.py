"""`fastmmu roots`: candidates for CR3 and EPT pointers, found in memory."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from fastmmu.cli import options as shared
from fastmmu.cli import space, terminal

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] MEMORY"

DESCRIPTION = """\
Finds root tables of address spaces in memory, of every paging mode and of EPTs, by a scan: what CR3 may be
where nobody says it. The likeliest come first.
"""

EPILOG = """\
examples:
  fastmmu roots guest.raw                       where do the page tables of this image begin?
  fastmmu maps guest.raw --cr3 1c0a000          then: what they map
  fastmmu roots host.raw --kinds EPT            machines that run in this one
  fastmmu roots host.raw --eptp 7f00001e        and the address spaces of one of them

columns:
  CR3            address of the root table; of an EPT the EPT pointer
  pages          that it maps; those that are in memory, that user mode may reach, code of the kernel alone
  why            what speaks for it, and against

Nested page tables of AMD have the format of the host's own paging: their roots are among those of 4 and 5
levels, all of their pages user mode's. --npt looks in the memory that they give.

It is no proof: the table of a process that has ended looks as one in use. Addresses are hexadecimal.
"""

_KINDS = ("5-level", "4-level", "PAE", "32-bit", "EPT")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("memory", metavar="MEMORY", help=space.MEMORY)
    parser.add_argument(
        "--kinds",
        type=shared.words([kind.lower() for kind in _KINDS]),
        metavar="LIST",
        help=f"what to look for, of {', '.join(_KINDS)} (all; 32-bit only where memory ends below 4 GB)",
    )
    parser.add_argument("--limit", type=shared.count(0), default=20, metavar="N", help="the first N (20); 0: all")
    parser.add_argument(
        "--eptp", type=shared.hexadecimal, metavar="EPTP", help="look in the memory that this EPT gives its guest"
    )
    space.add_npt(parser)
    shared.add_jobs(parser)
    space.add_image(parser)
    shared.add_files(parser, "a row a root", "an object a root")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.report import files
    from fastmmu.space import find_roots, guest_memory

    shared.check_files(options)
    memory, said = space.memory_of(options.memory, options)
    eptp = space.eptp_of(options)
    if eptp is not None:
        memory = guest_memory(memory, eptp)
    kinds = None if options.kinds is None else [kind for kind in _KINDS if kind.lower() in options.kinds]
    found = find_roots(memory, kinds=kinds, threads=options.jobs or 1)
    shown = found[: options.limit] if options.limit else found
    rows = [_row(root) for root in shown]
    for format in ("json", "csv", "parquet"):
        path = getattr(options, format)
        if path is None:
            continue
        data = files.encode_rows(rows, format, "roots", getattr(options, "command_line", ""))
        if path == "-":
            with terminal.binary() as out:
                out.write(data)
        else:
            files.write_whole(path, data)
    if not shared.to_stdout(options):
        _show(shown, len(found), said)
    return 0


def _row(root: Any) -> dict[str, Any]:
    row = asdict(root)
    for name in ("address", "pair"):
        row[name] = None if row[name] is None else f"{row[name]:#x}"
    row["eptp"] = f"{root.eptp.value:#x}" if root.eptp else None
    del row["pdptes"]
    return row


def _show(shown: list[Any], found: int, said: str) -> None:
    from fastmmu.report.table import Cell, Column, number, render

    if said:
        terminal.say(said)
    columns = [
        Column("CR3", align="<"),
        Column("kind", align="<"),
        Column("all", "pages"),
        Column("in memory", "pages"),
        Column("user", "pages"),
        Column("kernel code", "pages"),
        Column("why", align="<", words=True),
    ]
    rows = [
        [
            Cell(f"{root.eptp.value if root.eptp else root.address:x}"),
            Cell(root.kind),
            *(Cell(number(n)) for n in (root.pages, root.inside, root.user, root.kernel_code)),
            Cell(root.reason),
        ]
        for root in shown
    ]
    if rows:
        terminal.say("\n".join(render(columns, rows, width=terminal.width(), colour=terminal.colour())))
        terminal.say("")
    terminal.say(
        f"{found:,} root{'' if found == 1 else 's'}{f', the first {len(shown)}' if len(shown) < found else ''}"
    )
    if not found:
        terminal.say("no table of memory leads to pages: is this memory, and all of it? (--map, --machine)")
