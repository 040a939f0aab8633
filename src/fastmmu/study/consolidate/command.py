"""`fastmmu host`: traces as virtual machines on the physical CPUs of one host."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from fastmmu.cli import interruption, terminal
from fastmmu.cli import options as shared
from fastmmu.cli.progress import progress, step
from fastmmu.errors import ConfigError
from fastmmu.machine.wholly import read_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmmu.machine.config import Config
    from fastmmu.machine.costs import CostModel
    from fastmmu.study.consolidate.run import Consolidation, Turn
    from fastmmu.study.consolidate.threads import Threaded
    from fastmmu.trace import Trace

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

METHODS = ("ipi", "pv", "invlpgb")
USAGE = "[options] [TRACE ...]"

DESCRIPTION = """\
Runs each trace in a virtual machine of its own (with --one-machine: each on a vCPU of one machine), on the physical
CPUs of one host. A TLB belongs to a physical CPU: what a vCPU finds there is what the others left, and where it moves
the VMM flushes, by the policy that --kvm names. With --threads vcpus the traces are threads of one process
(--processes: of several; a folder of drmemtrace is its threads, by their processes) on the vCPUs of one machine, whose
guest kernel makes vCPUs flush where one takes rights away (docs/shootdowns.md). With --tpr each vCPU has a local APIC,
and those of one machine send each other interrupts.
"""

EPILOG = """\
examples:
  fastmmu host
  fastmmu host a.lackey b.lackey c.lackey --cpus 2 --quantum 20k --vpid
  fastmmu host a.lackey b.lackey --cpus 2 --one-machine --mmu shadow --vpid --kvm 6.1
  fastmmu host a.lackey b.lackey --cpus 2 --schedule turns.csv
  fastmmu host a.lackey b.lackey --topology 1x1x2 --quantum 1k --vpid        two hyperthreads of a core
  fastmmu host --cpus 2 --one-machine --vpid --tpr apicv --traffic linux
  fastmmu host a.lackey b.lackey --threads vcpus --cpus 2 --vpid --shootdown pv
  fastmmu host a b c d --threads vcpus --processes 0,0,1,1 --vcpus 3 --affinity 0,1,0+1+2,2 --seed 1 --migrate 10%

A schedule has a line for each turn: CPU, vCPU, events (lines that begin with # do not count). The run ends with it.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    host = parser.add_argument_group("the host")
    host.add_argument(
        "--cpus", type=shared.count(1), metavar="N", help="physical CPUs; default: those of --topology, or 1"
    )
    shared.add_topology(host)
    host.add_argument("--quantum", type=shared.count(1), default=50_000, metavar="N", help="events of a turn; 50k")
    host.add_argument("--schedule", metavar="FILE", help="turns, in place of round robin")
    host.add_argument("--one-machine", action="store_true", help="the traces run on the vCPUs of one machine")
    threads = parser.add_argument_group("threads on vCPUs")
    threads.add_argument(
        "--processes", type=numbers, metavar="P,...", help="process of each trace, from 0, where they are of several"
    )
    threads.add_argument("--vcpus", type=shared.count(1), metavar="N", help="vCPUs; default: one for each thread")
    threads.add_argument(
        "--seed", type=shared.count(0), metavar="N", help="turns come in a random order, of random length"
    )
    threads.add_argument(
        "--migrate", type=shared.share, default=0.0, metavar="P", help="chance a round that a thread moves"
    )
    threads.add_argument("--affinity", type=groups, metavar="V+V,...", help="vCPUs that each thread may run on")
    scheme = parser.add_argument_group("the machines")
    scheme.add_argument("--mmu", choices=("shadow", "ept"), default="ept", help="default: ept")
    scheme.add_argument("--vpid", action="store_true", help="TLB entries are tagged: VM entry and exit flush nothing")
    shared.add_pages(scheme, "4k", "2m", "thp")
    scheme.add_argument(
        "--shootdown", choices=METHODS, help="how vCPUs of one machine make each other flush; default: ipi"
    )
    scheme.add_argument("--no-lazy-tlb", action="store_true", help="vCPUs that idle load the kernel's own tables")
    shared.add_traces(parser, "Default: the bundled traces", vcpus=("vcpus",))
    shared.add_config(parser)
    shared.add_files(parser)
    shared.add_quiet(parser)


def numbers(text: str) -> list[int]:
    """Numbers with commas between them."""
    if not re.fullmatch("[0-9]{1,6}(,[0-9]{1,6})*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers with commas between them, as in 0,0,1")
    return [int(word) for word in text.split(",")]


def groups(text: str) -> list[list[int]]:
    """Groups of numbers: commas between groups, + within."""
    return [numbers(word.replace("+", ",")) for word in text.split(",")]


def read_schedule(path: str) -> list[Turn]:
    """The turns of a file.

    :raises ConfigError: a line that is none, with its number. :raises OSError: the file cannot be read.
    """
    turns: list[Turn] = []
    for number, line in enumerate(read_whole(path).decode("utf-8", "backslashreplace").splitlines(), 1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) != 3 or not all(re.fullmatch("[0-9]{1,18}", word) for word in words):
            said = repr(line.strip()[:60])
            raise ConfigError(f"{path}, line {number}: {said} is no turn; write CPU, vCPU, events")
        cpu, vcpu, events = map(int, words)
        turns.append((cpu, vcpu, events))
    return turns


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.machine.config import Config
    from fastmmu.study.consolidate.run import consolidate
    from fastmmu.study.consolidate.table import host_table

    fields = shared.config_fields(options)
    if options.no_lazy_tlb:
        fields["lazy_tlb"] = False
    config = Config(mmu=options.mmu, vpid=options.vpid, pages=options.pages, **fields)
    shared.check_files(options)
    chosen, costs = shared.traces(options), shared.cost_model(options)
    schedule = None if options.schedule is None else read_schedule(options.schedule)
    threaded = options.threads == "vcpus"
    if schedule is not None and threaded:
        raise ConfigError("--schedule says which vCPU runs where, --threads vcpus which thread runs on one; give one")
    with progress(quiet=options.quiet) as report:

        def told(n: int) -> None:
            report(f"{len(chosen)} {'threads' if threaded else 'vCPUs'}", None, n)

        found: Consolidation
        if threaded:
            found = step(lambda: _threads(options, chosen, config, costs, told))
        else:
            found = step(
                lambda: consolidate(
                    chosen,
                    config,
                    cpus=options.cpus,
                    quantum=options.quantum,
                    schedule=schedule,
                    one_machine=options.one_machine,
                    costs=costs,
                    progress=told,
                    keep_partial=True,
                )
            )
    shared.write_files(options, found.results)
    if not shared.to_stdout(options):
        terminal.say(host_table(found, width=terminal.width(), colour=terminal.colour()))
    return 0 if all(result.complete for result in found.results) else interruption.code()


def _threads(
    options: argparse.Namespace, chosen: list[Trace], config: Config, costs: CostModel, told: Callable[[int], None]
) -> Threaded:
    from fastmmu.study.consolidate.threads import run_threads, threads_of

    threads, processes = threads_of(chosen)
    return run_threads(
        threads,
        config,
        processes=options.processes or processes,
        vcpus=options.vcpus,
        cpus=options.cpus,
        quantum=options.quantum,
        seed=options.seed,
        migrate=options.migrate,
        affinity=options.affinity,
        costs=costs,
        progress=told,
        keep_partial=True,
    )
