"""`fastmmu trace info` and `fastmmu trace convert`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.cli.progress import progress, step

if TYPE_CHECKING:
    from fastmmu.cli.progress import Report
    from fastmmu.trace import Trace
    from fastmmu.trace.identity import Identified
    from fastmmu.trace.survey import Survey

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "convert", "handle", "info"]

USAGE = "[-h] COMMAND ..."

DESCRIPTION = "Looks at traces and converts them."

EPILOG = None

_INFO = """\
examples:
  fastmmu trace info                   the bundled traces
  fastmmu trace info app.lackey.xz big.champsim.zst
  fastmmu trace info addresses.npy --limit 1M
"""

_CONVERT = """\
examples:
  fastmmu trace convert app.lackey.xz app.arrow
  fastmmu trace convert app.lackey app.npy --data-only --limit 10M
  fastmmu trace convert a.lackey b.lackey both.arrow --switch-every 20000

The format of OUT is that of its name: .arrow (fastmmu's own, columns op, size, addr), .parquet, .npy, .lackey, .csv,
.din (Dinero) or .champsim, with .gz, .xz, .zst, .bz2, .lz4 or .sz behind to compress it as a whole. OUT appears only
when it is complete.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the commands."""
    inner = parser.add_subparsers(prog="fastmmu trace", title="commands", metavar="COMMAND", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    look = inner.add_parser(
        "info",
        help="operations, pages and addresses of a trace",
        usage="fastmmu trace info [options] [TRACE ...]",
        description="Counts what traces hold, in one pass over each.",
        epilog=_INFO,
        formatter_class=raw,
    )
    shared.add_traces(look, "Default: the bundled traces")
    shared.add_quiet(look)
    look.set_defaults(part=info)
    change = inner.add_parser(
        "convert",
        help="a trace in another format",
        usage="fastmmu trace convert [options] TRACE ... OUT",
        description="Writes a trace in another format.",
        epilog=_CONVERT,
        formatter_class=raw,
    )
    shared.add_traces(change, "Several need --switch-every", nargs="+")
    change.add_argument("out", metavar="OUT", help="file to write")
    change.add_argument(
        "--exit-every", type=shared.count(1), metavar="N", help="add a CPUID exit after each N accesses"
    )
    shared.add_quiet(change)
    change.set_defaults(part=convert)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    code: int = options.part(options)
    return code


def info(options: argparse.Namespace) -> int:
    """Run `trace info`; returns the exit code."""
    from fastmmu.trace.identity import identified
    from fastmmu.trace.survey import survey

    for i, trace in enumerate(map(identified, shared.traces(options))):
        with progress(quiet=options.quiet) as report:
            found = step(partial(survey, trace, progress=partial(_told, report, trace)))
        terminal.say(("\n" if i else "") + "\n".join(_survey(trace, found)))
    return 0


def _told(report: Report, trace: Trace, events: int) -> None:
    report(trace.name, trace.progress(), events)


def _survey(trace: Identified, found: Survey) -> list[str]:
    lines = [f"{trace.name}: {trace.format}" + (f", {trace.path}" if trace.path else "")]
    lines.append(f"  {'events':12}{found.events:>16,}")
    lines.append(f"  {'accesses':12}{found.accesses:>16,}")
    lines += [f"    {op.name.lower():10}{n:>16,}" for op, n in found.by_op.items()]
    lines.append(f"  {'4 KB pages':12}{found.pages_4k:>16,}   ({found.pages_4k * 4 / 1024:,.1f} MB)")
    lines.append(f"  {'2 MB pages':12}{found.pages_2m:>16,}")
    if found.instructions is not None:
        lines.append(f"  {'instructions':12}{found.instructions:>16,}")
    if found.processes > 1:
        lines.append(f"  {'processes':12}{found.processes:>16,}")
    if found.lowest is not None and found.highest is not None:
        lines.append(f"  addresses    {found.lowest:#x} .. {found.highest:#x}")
    lines.append(f"  content      {trace.content}   (hash of the events, as in files of results)")
    return lines


def convert(options: argparse.Namespace) -> int:
    """Run `trace convert`; returns the exit code."""
    from fastmmu.errors import ConfigError
    from fastmmu.trace import exits_every, write_trace
    from fastmmu.trace.combine import told

    found = shared.traces(options)
    if len(found) != 1:
        raise ConfigError(f"one trace is converted at a time, not {len(found)}; with --switch-every N they become one")
    trace = found[0] if options.exit_every is None else exits_every(found[0], options.exit_every)
    with progress(quiet=options.quiet) as report:
        step(partial(write_trace, told(trace, partial(_told, report, trace)), options.out))
    return 0
