"""`fastmmu run`: one scheme, all counters."""

from __future__ import annotations

import argparse
from typing import Any

from fastmmu.cli import options as shared
from fastmmu.cli import terminal

__all__ = ["add", "handle"]

_EPILOG = """\
examples:
  fastmmu run app.lackey.xz                             native
  fastmmu run app.lackey.xz --mmu ept --vpid --pages thp
  fastmmu run app.npy --premapped --data-only --l1d 64/4 --stlb 1536/12     the TLB alone
  fastmmu run app.arrow --mmu shadow --json result.json
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        help="one scheme, with all its counters",
        usage="fastmmu run [options] [TRACE ...]",
        description="Simulates each trace under one scheme and prints all counters, the VM exits by reason and the\n"
        "modelled cycles by cause.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    scheme = parser.add_argument_group("the scheme")
    scheme.add_argument("--mmu", choices=("native", "shadow", "ept"), default="native", help="default: native")
    scheme.add_argument("--vpid", action="store_true", help="TLB entries are tagged: VM entry and exit flush nothing")
    scheme.add_argument("--pages", choices=("4k", "2m", "thp"), default="4k", help="guest pages; default: 4k")
    shared.add_watch(scheme)
    shared.add_traces(parser, shared.RUNS)
    shared.add_config(parser)
    shared.add_files(parser)
    shared.add_quiet(parser)
    parser.set_defaults(handler=handle)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.cli.simulation import Session
    from fastmmu.machine.config import Config
    from fastmmu.report import single

    fields = shared.config_fields(options)
    config = Config(mmu=options.mmu, vpid=options.vpid, pages=options.pages, **fields)
    session = Session(shared.cost_model(options), options.quiet)
    shared.check_files(options)
    chosen = shared.traces(options, system=True)
    for trace in chosen:
        for result in session.run(trace, [config], runs=len(chosen)):
            if not shared.to_stdout(options):
                terminal.say(single(result, colour=terminal.colour()) + "\n")
        if session.interrupted:
            break
    shared.write_files(options, session.results)
    if not shared.to_stdout(options):
        terminal.say(session.footer() + (", interrupted" if session.interrupted else ""))
    return 130 if session.interrupted else 0
