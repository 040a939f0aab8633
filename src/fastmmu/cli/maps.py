"""`fastmmu maps`: every mapping of an address space."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from fastmmu.cli import interruption, space, terminal
from fastmmu.cli import options as shared
from fastmmu.cli.progress import UntilInterrupted
from fastmmu.errors import ConfigError

if TYPE_CHECKING:
    from fastmmu.paging.mappings import MappingIterator

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] MEMORY"

DESCRIPTION = """\
Lists every mapping of an address space, in every paging mode, over EPT and over AMD's nested paging.
"""

EPILOG = """\
examples:
  fastmmu maps guests/l4_user                              a recorded guest, with its own registers
  fastmmu maps guests/l4_user --start 400000 --stop 800000000000
  fastmmu maps vmcore                                      an image that holds registers, and those of --cpu 0
  fastmmu maps guest.raw --cr3 1c0a000 --csv pages.csv     a raw image
  fastmmu maps ram.raw --machine q35 --cr3 1c0a000         the memory file of a virtual machine of more than 2 GB
  fastmmu maps vmcore --where 1a2b3000                     the addresses that map one physical page
  fastmmu maps vmcore --contiguity                         runs of pages that follow each other, by length
  fastmmu maps host.raw --cr3 1000 --eptp 7f00005e --limit 1M --json -
  fastmmu maps host.raw --cr3 1000 --npt 7f000000          the same of a machine on AMD

columns:
  linear addresses   a range of pages side by side that agree in page size, rights and memory type
  rights             r w x what the guest's tables and the EPT both allow, u user mode, g global
  type               effective memory type of the first byte
  physical           where the first page lies; + the pages of the range are not one after the other there

Files hold a row a page, never merged: the fields of fastmmu.dtypes.MAPPING_DTYPE. Rows are in the order of the tables,
in long mode the kernel's half last, and are written as they are found. Addresses and registers are hexadecimal, with or
without 0x; underscores are ignored.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("memory", metavar="MEMORY", help=space.MEMORY)
    parser.add_argument("--start", type=shared.hexadecimal, metavar="ADDRESS", help="only pages from this address on")
    parser.add_argument("--stop", type=shared.hexadecimal, metavar="ADDRESS", help="only pages below this address")
    parser.add_argument("--limit", type=shared.count(0), metavar="N", help="only the first N pages")
    parser.add_argument(
        "--where", type=shared.hexadecimal, metavar="PA", help="only pages that map this physical address: who has it"
    )
    parser.add_argument(
        "--contiguity",
        action="store_true",
        help="runs of pages that follow each other in linear and physical addresses, by length, in place of the list; "
        "over EPT the guest's, too",
    )
    parser.add_argument("--faults", action="store_true", help="list the places where tables lead nowhere")
    space.add_registers(parser)
    shared.add_files(parser, "a row a page", "an object a page")


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.paging.mappings import iter_mappings
    from fastmmu.report import mappings, walkview

    shared.check_files(options)
    if options.where is not None and options.where >> 52:
        raise ConfigError(f"--where {options.where:x}: a physical address has at most 52 bits")
    memory, state, said = space.memory_and_state(options.memory, options)
    eptp = space.eptp_of(options)
    writers = {"json": mappings.write_json, "csv": mappings.write_csv, "parquet": mappings.write_parquet}

    def found() -> MappingIterator | _Where:
        limit = options.limit if options.where is None else None
        rows = iter_mappings(memory, state, eptp, start=options.start, stop=options.stop, limit=limit, chunk=1 << 14)
        return rows if options.where is None else _Where(rows, options.where, options.limit)

    if options.contiguity:
        return _contiguity(options, found, said, ept=eptp is not None)
    for format, write in writers.items():
        path = getattr(options, format)
        if path is not None:
            steps = UntilInterrupted(found())
            with _target(path) as file:
                write(steps, file, getattr(options, "command_line", ""))
            if steps.happened:  # the file holds what was found until then
                raise KeyboardInterrupt
    space.say_if_empty(memory, state, eptp)
    if shared.to_stdout(options):
        return 0
    head = f"{walkview.MODES[state.mode.name]}; {walkview.registers(state, eptp)}"
    return _show(options, found(), f"{said}\n{head}" if said else head, ept=eptp is not None)


def _contiguity(options: argparse.Namespace, found: Callable[[], Any], said: str | None, *, ept: bool) -> int:
    """--contiguity: tables, and a row a power of two in files."""
    from fastmmu.paging.contiguity import contiguity
    from fastmmu.report.runs import run_lines, run_rows

    kinds = {"linear to host-physical" if ept else "linear to physical": "pa"}
    if ept:
        kinds["linear to guest-physical"] = "gpa"
    steps = {name: UntilInterrupted(found()) for name in kinds}
    runs = {name: contiguity(steps[name], by) for name, by in kinds.items()}  # type: ignore[arg-type]
    shared.write_rows(options, run_rows(runs), "runs")
    if not shared.to_stdout(options):
        for text in (*((said,) if said else ()), *run_lines(runs)):
            terminal.say(text)
    return interruption.code() if any(each.happened for each in steps.values()) else 0


class _Where:
    """The rows that map a physical address, as a MappingIterator gives all."""

    def __init__(self, rows: MappingIterator, pa: int, limit: int | None) -> None:
        self.all, self.pa, self.left = rows, pa, limit
        self.rows, self.truncated = 0, False

    def __iter__(self) -> _Where:
        return self

    def __next__(self) -> Any:
        chunk: Any = ()
        while not len(chunk):
            chunk = next(self.all)
            chunk = chunk[(chunk.pa <= self.pa) & (self.pa - chunk.pa < chunk["size"])]
        if self.left is not None:
            self.truncated |= len(chunk) > self.left
            chunk = chunk[: self.left]
            self.left -= len(chunk)
        self.rows += len(chunk)
        return chunk

    @property
    def skipped(self) -> Any:
        return self.all.skipped

    @property
    def faults(self) -> Any:
        return self.all.faults


def _show(options: argparse.Namespace, rows: MappingIterator | _Where, head: str, *, ept: bool) -> int:
    from fastmmu.report import mappings

    terminal.say(head)
    count = 0
    steps = UntilInterrupted(rows)

    def counted() -> Iterator[mappings.Range]:
        nonlocal count
        for each in mappings.ranges(steps):
            count += 1
            yield each

    for number, text in enumerate(mappings.lines(counted(), ept=ept, width=terminal.width())):
        terminal.say(text if number else f"\n{mappings.heading(ept=ept, width=terminal.width())}\n{text}")
    terminal.say(f"\n{rows.rows:,} pages in {count:,} ranges{', interrupted' if steps.happened else ''}")
    if rows.truncated:
        terminal.say("there are more: --limit ended the list")
    for text in mappings.nowhere(rows.skipped, rows.faults, listed=options.faults):
        terminal.say(text)
    return interruption.code() if steps.happened else 0


@contextlib.contextmanager
def _target(path: str) -> Iterator[BinaryIO]:
    """A file that appears when it is complete, or standard output."""
    if path == "-":
        with terminal.binary() as file:
            yield file
        return
    from fastmmu.report.files import whole_file

    with whole_file(path) as file:
        yield file
