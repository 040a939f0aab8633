"""`fastmmu run`: one scheme, all counters."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fastmmu.cli import exit_log, terminal
from fastmmu.cli import options as shared
from fastmmu.cli.checkpoint import add_checkpoint
from fastmmu.cli.contiguity import add_contiguity, show_contiguity
from fastmmu.cli.region import add_region
from fastmmu.cli.settings import add_settings, save
from fastmmu.cli.vmm import MMUS, add_agile
from fastmmu.errors import ConfigError

if TYPE_CHECKING:
    from fastmmu.machine.config import Config

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] [TRACE ...]"

DESCRIPTION = """\
Simulates each trace under one scheme and prints all counters, the VM exits by reason and the
modelled cycles by cause.
"""

EPILOG = """\
examples:
  fastmmu run app.lackey.xz                             native
  fastmmu run app.lackey.xz --mmu ept --vpid --pages thp
  fastmmu run app.npy --premapped --data-only --l1d 64/4 --stlb 1536/12     the TLB alone
  fastmmu run app.arrow --mmu shadow --json result.json
  fastmmu run app.arrow --mmu ept --exits exits.arrow --plot exits.svg      every VM exit; a picture of them over time
  fastmmu run app.arrow --mmu ept --exit-stat                   exits by reason, as `perf kvm stat` tells them
  fastmmu run app.arrow --mmu ept --interval 100k --plot t.svg   cycles, TLB misses, exits over time
  fastmmu run app.arrow --mmu ept --save-config ept.toml        its options in a file; with --config ept.toml again
  fastmmu run app.arrow --checkpoint app.ckpt --json result.json            ended and started again, it goes on
  fastmmu run app.arrow --mmu ept --exits exits.txt     as `trace-cmd report` prints kvm:kvm_exit
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    scheme = parser.add_argument_group("the scheme")
    scheme.add_argument("--mmu", choices=MMUS, default="native", help="default: native")
    add_agile(scheme)
    scheme.add_argument("--vpid", action="store_true", help="TLB entries are tagged: VM entry and exit flush nothing")
    shared.add_pages(scheme, "4k", "2m", "thp")
    shared.add_watch(scheme)
    add_contiguity(scheme)
    shared.add_traces(parser, shared.RUNS)
    shared.add_config(parser)
    add_region(parser)
    add_checkpoint(parser)
    shared.add_files(parser)
    exit_log.add_exits(parser)
    shared.add_jobs(parser)
    shared.add_quiet(parser)
    add_settings(parser)


def config_of(options: argparse.Namespace) -> Config:
    """The configuration that was asked for."""
    from fastmmu.machine.config import Config

    fields = shared.config_fields(options)
    return Config(mmu=options.mmu, vpid=options.vpid, pages=options.pages, **fields)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.cli.simulation import run_all
    from fastmmu.machine.result import Result
    from fastmmu.report import plot_runs, single

    def show(results: list[Result], _: list[str]) -> None:
        for result in results:
            terminal.say(single(result, width=terminal.width(), colour=terminal.colour()) + "\n")

    configs = [config_of(options)]
    save(options, configs[0])
    if options.contiguity:
        return show_contiguity(options, configs[0])
    timed = options.plot is not None and options.interval is not None
    exits = options.exits is not None or options.exit_stat or (options.plot is not None and not timed)
    exit_log.check_exits(options)
    if timed and options.sample_every is not None:
        raise ConfigError("--plot shows whole runs over time; leave --sample-every out, or --plot")

    def finish(results: list[Result]) -> None:
        if timed:
            plot_runs(results, options.plot)

    if not exits:
        return run_all(options, configs, show, finish=finish)
    if options.checkpoint is not None:
        raise ConfigError("--exits, --plot and --exit-stat have exits as they come, which a run that goes on does not "
                          "repeat; leave out --checkpoint, or these")  # fmt: skip
    with exit_log.RunLog(options) as log:
        return run_all(options, configs, show, log, finish=finish)
