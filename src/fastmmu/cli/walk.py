"""`fastmmu walk`: one address, drawn step by step."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from fastmmu.cli import options as shared
from fastmmu.cli import space, terminal
from fastmmu.errors import ConfigError

if TYPE_CHECKING:
    from fastmmu.paging.memory import PhysicalMemory
    from fastmmu.paging.state import GuestState, Npt
    from fastmmu.report.outcome import Walk

__all__ = ["DESCRIPTION", "EPILOG", "EXAMPLE", "USAGE", "add", "example_memory", "handle"]

EXAMPLE = {"eptp": 0x2_0000_001E, "cr3": 0x1000, "va": 0x0080_4020_1ABC}
"""Registers and address of the demonstration: index 1 at each guest level, 4 x 4 levels."""

_EXAMPLE_TABLES = {
    0x2_0000_0000: 0x2_0000_1007,  # EPT: one table a level
    0x2_0000_1000: 0x2_0000_2007,
    0x2_0000_2000: 0x2_0000_3007,
    0x2_0000_3008: 0x1_0000_1037,  # guest-physical 1000..4000: the guest's tables
    0x2_0000_3010: 0x1_0000_2037,
    0x2_0000_3018: 0x1_0000_3037,
    0x2_0000_3020: 0x1_0000_4037,
    0x2_0000_3048: 0x1_0000_9037,  # guest-physical 9000: the data
    0x1_0000_1008: 0x2067,
    0x1_0000_2008: 0x3067,
    0x1_0000_3008: 0x4067,
    0x1_0000_4008: 0x9067,
}
_EXAMPLE_BYTES = 0x2_0000_4000

USAGE = "[options]"

DESCRIPTION = """\
Translates one linear address and draws each memory reference of the walk: rows are the guest's
levels, columns those of the EPT, or of AMD's NPT. Without --memory it shows a worked example.
"""

EPILOG = """\
examples:
  fastmmu walk                                        the demonstration: 4 x 4 levels, 24 references
  fastmmu walk --access w --eptp 20000005e --set-ad   the same as a write, with accessed and dirty flags in the EPT
  fastmmu walk --npt 200000000                        the same over AMD's nested page tables
  fastmmu walk --va 8040202abc                        its next page: a page fault
  fastmmu walk --memory guests/l4_user --va ffffffff81000000         a recorded guest, with its own registers
  fastmmu walk --memory vmcore --cpu 1 --va ffffffff81000000         an image that holds registers
  fastmmu walk --memory guest.raw --cr3 1c0a000 --va ffffffff81000000
  fastmmu walk --memory host.raw --cr3 1000 --eptp 7f00005e --va 400000 --user --access x

Addresses and registers are hexadecimal, with or without 0x; underscores are ignored. Without --set-ad the walk is a
query: it has the outcome that the access would have, and memory stays as it is. A file is never written to.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--memory", metavar="MEMORY", help=space.MEMORY)
    parser.add_argument("--va", type=shared.hexadecimal, metavar="ADDRESS", help="linear address to translate")
    parser.add_argument("--access", choices=("r", "w", "rw", "x"), default="r", help="read (the default), write, "
                        "read-modify-write, fetch")  # fmt: skip
    parser.add_argument("--set-ad", action="store_true", help="set accessed and dirty flags, in memory only")
    parser.add_argument("--steps", action="store_true", help="a line a reference instead of the picture")
    parser.add_argument("--json", metavar="FILE", help="write the steps as JSON; - is standard output, and no picture")
    state = space.add_registers(parser)
    state.add_argument("--pkru", type=shared.hexadecimal, metavar="PKRU", help="default: 0")
    state.add_argument("--user", action="store_true", help="access by user mode (CPL 3) and not by the kernel")
    state.add_argument("--ac", action="store_true", help="RFLAGS.AC is set")


def example_memory(*, npt: bool = False) -> PhysicalMemory:
    """Memory of the demonstration: 4-level guest tables under a 4-level EPT, or nested page tables of AMD. Only the
    pages written take memory."""
    from fastmmu.paging.memory import PhysicalMemory

    memory = PhysicalMemory(_EXAMPLE_BYTES)
    for address, entry in _EXAMPLE_TABLES.items():
        leaf = address >> 32 == 2 and entry & 0x30
        memory.write64(address, entry & ~0x30 if npt and leaf else entry)  # RWX of an EPT is user, write, present
    return memory


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu._walk import walk
    from fastmmu.report.files import check_target

    if options.json not in (None, "-"):
        check_target(options.json, "json")
    eptp, va = space.eptp_of(options, EXAMPLE["eptp"] if options.memory is None else None), options.va
    nested = eptp is not None and not isinstance(eptp, int)
    who: dict[str, Any] = {"cpl": 3 if options.user else 0, "ac": int(options.ac)}
    if options.memory is None:
        va = EXAMPLE["va"] if va is None else va
        memory, state = example_memory(npt=nested), space.state_of(options, {"cr3": EXAMPLE["cr3"]}, **who)
    else:
        if va is None:
            raise ConfigError("--memory needs --va too: what to translate")
        memory, state, _ = space.memory_and_state(options.memory, options, writable=options.set_ad, **who)
    result = walk(memory, state, va, access=options.access, eptp=eptp, set_ad=options.set_ad)
    if result.fault and options.memory is not None:
        space.say_if_empty(memory, state, eptp)
    if options.json is not None:
        _write_json(options.json, result, getattr(options, "command_line", ""))
    if options.json != "-":
        _show(options, state, result, eptp)
    return 0


def _show(options: argparse.Namespace, state: GuestState, result: Walk, eptp: int | Npt | None) -> None:
    from fastmmu.report import walkview

    colour = terminal.colour()
    for line in walkview.heading(result, state, eptp):
        terminal.say(line)
    lines = walkview.steps(result, width=terminal.width(), colour=colour) if options.steps else walkview.picture(result)
    if not options.steps and max(map(len, lines), default=0) > terminal.width():
        terminal.say(f"(the picture needs {max(map(len, lines))} columns; a line a reference instead)\n")
        lines = walkview.steps(result, width=terminal.width(), colour=colour)
    elif not options.steps:
        lines = walkview.picture(result, colour=colour)
    terminal.say("\n".join(["", *lines, ""]))
    terminal.say("\n".join(walkview.outcome(result, state, ept=eptp is not None)))


def _write_json(path: str, result: Walk, command: str) -> None:
    from fastmmu.report import walkview
    from fastmmu.report.files import made_by, write_whole

    text = json.dumps({**made_by(command), **walkview.as_dict(result)}, indent=2) + "\n"
    if path == "-":
        terminal.put(text)
    else:
        write_whole(path, text.encode())
