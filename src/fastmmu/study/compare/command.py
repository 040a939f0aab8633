"""`fastmmu compare`: one trace under several schemes, a table of results."""

from __future__ import annotations

import argparse

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.cli.checkpoint import add_checkpoint
from fastmmu.cli.experiment import add_size
from fastmmu.cli.region import add_region
from fastmmu.cli.report import INTERVAL, add_report
from fastmmu.cli.settings import add_settings, save
from fastmmu.errors import ConfigError
from fastmmu.study.schemes import COMPARE, USUAL

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

PAGES = ("4k", "2m", "thp")

USAGE = "[options] [TRACE ...]"

DESCRIPTION = """\
Simulates each trace natively, under shadow paging and under EPT, without and with VPID, and prints one table a trace:
TLB misses, page walks and their memory references, guest page faults, VM exits by reason, the modelled cycles of an
access and the slowdown over the native run with the same pages; under it, which causes cost what.

Several traces are several tables. In files a row says what it was made of: path and content of the trace (a hash of its
events), configuration, arrays of the TLB, cost model, version and command line. Of two equal runs only `seconds`, the
wall time, and what named them, `path` and `command`, differ; `fastmmu diff` leaves these out. With --switch-every they
are the processes of one guest, and one table.
"""

EPILOG = """\
examples:
  fastmmu compare
  fastmmu compare app.lackey.xz --schemes native,ept,ept+vpid --pages 4k,2m,thp
  fastmmu compare a.lackey b.lackey --switch-every 20000 --exit-every 5000
  fastmmu compare app.arrow --limit 10M --tlb haswell --stlb 1024/8 --csv results.csv
  fastmmu compare app.arrow --report app.html            a page: tables that sort, pictures
  fastmmu compare app.arrow --interval 100k --plot t.svg     cycles, misses, exits over time
  fastmmu compare app.arrow --explain                    what each TLB did, and what flushes cost
  fastmmu compare --schemes native,ept+vpid --kvm slides,5.10,6.1,6.12
  fastmmu compare app.arrow --generation prescott        what it would have cost in 2005
  fastmmu compare app.lackey.xz --tpr flexpriority       a guest with an APIC, and Windows XP's traffic to it

columns:
  TLB misses      of the first level, and of both: the latter are walked
  walk refs       entries read by the walks: of the guest's tables (under shadow paging: of the shadow tables),
                  and of the EPT
  guest faults    page faults that the guest's kernel handles
  VM exits        in all, and by reason: #PF, CR3 (writes), INVLPG, EPT (violations), CPUID, ...; with --tpr also
                  APIC (accesses), TPR (below the threshold), window, EOI, VMCALL (polls of patched code)
  cycles/access   modelled, see the comments in fastmmu's costs.toml; --costs replaces values
  fastmmu speed   accesses that the simulator itself does a second
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--schemes",
        type=shared.words(tuple(COMPARE)),
        default=list(USUAL),
        metavar="LIST",
        help=f"rows, out of {','.join(COMPARE)}; default: all without agile paging",
    )
    parser.add_argument(
        "--pages",
        type=shared.words(PAGES),
        default=["4k"],
        metavar="LIST",
        help="guest pages: 4k (the default), 2m, thp (4 KB, collapsed into 2 MB where dense); each with every scheme",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="also what each TLB did: hits by structure and page size, what each kind of flush took, and its refills",
    )
    parser.add_argument(
        "--kvm",
        type=shared.words(shared.KVM_VERSIONS),
        default=["slides"],
        metavar="LIST",
        help="versions of KVM: slides (the default), 5.10, 6.1, 6.12; each with every scheme but native",
    )
    shared.add_traces(parser, shared.RUNS)
    shared.add_config(parser, kvm=False)
    add_region(parser)
    add_checkpoint(parser)
    shared.add_files(parser)
    add_report(parser)
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="cycles of an access by cause, a bar a scheme, as .png, .svg or .pdf (needs "
        "fastmmu[plot]); with --interval cycles, TLB misses and exits over time, a line each",
    )
    add_size(parser)
    shared.add_jobs(parser)
    shared.add_quiet(parser)
    add_settings(parser)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from dataclasses import replace

    from fastmmu.cli.report import check_report, write_report
    from fastmmu.cli.simulation import run_all
    from fastmmu.machine.result import Result
    from fastmmu.report import comparison, explain, plot_runs
    from fastmmu.report.figure import check_picture, sized
    from fastmmu.study.compare.run import configurations

    check_report(options)
    if options.plot is not None:
        if options.sample_every is not None:
            raise ConfigError("--plot shows whole runs; leave --sample-every out, or --plot")
        sized(options.size)
        check_picture(options.plot)

    def show(results: list[Result], not_run: list[str]) -> None:
        text = comparison(results, width=terminal.width(), colour=terminal.colour(), not_run=not_run)
        terminal.say(text + "\n")
        if options.explain:
            terminal.say(explain(results, width=terminal.width(), colour=terminal.colour()) + "\n")

    def finish(results: list[Result]) -> None:
        write_report(options, results, "fastmmu compare")
        if options.plot is not None:
            plot_runs(
                results if options.interval is not None else [replace(r, series=None) for r in results], options.plot
            )

    fields = shared.config_fields(options)
    for name in ("mmu", "vpid"):
        if name in fields:
            raise ConfigError(f"config.{name} in a file: compare runs schemes; leave it out, choose by --schemes")
    save(options, fields)
    configs = configurations(options.schemes, options.pages, options.kvm, **fields)
    interval = None if options.report is None else INTERVAL
    return run_all(options, configs, show, finish=finish, interval=interval)
