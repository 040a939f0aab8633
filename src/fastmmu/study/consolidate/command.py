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
    from fastmmu.study.consolidate.run import Turn

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

METHODS = ("ipi", "pv", "invlpgb")
USAGE = "[options] [TRACE ...]"

DESCRIPTION = """\
Runs each trace in a virtual machine of its own (with --one-machine: each on a vCPU of one machine), on the physical
CPUs of one host. A TLB belongs to a physical CPU: what a vCPU finds there is what the others left, and where it moves
the VMM flushes, by the policy that --kvm names. With --tpr each vCPU has a local APIC, and those of one machine send
each other interrupts.
"""

EPILOG = """\
examples:
  fastmmu host
  fastmmu host a.lackey b.lackey c.lackey --cpus 2 --quantum 20k --vpid
  fastmmu host a.lackey b.lackey --cpus 2 --one-machine --mmu shadow --vpid --kvm 6.1
  fastmmu host a.lackey b.lackey --cpus 2 --schedule turns.csv
  fastmmu host a.lackey b.lackey --topology 1x1x2 --quantum 1k --vpid        two hyperthreads of a core
  fastmmu host --cpus 2 --one-machine --vpid --tpr apicv --traffic linux

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
    scheme = parser.add_argument_group("the machines")
    scheme.add_argument("--mmu", choices=("shadow", "ept"), default="ept", help="default: ept")
    scheme.add_argument("--vpid", action="store_true", help="TLB entries are tagged: VM entry and exit flush nothing")
    shared.add_pages(scheme, "4k", "2m", "thp")
    scheme.add_argument(
        "--shootdown", choices=METHODS, help="how vCPUs of one machine make each other flush; default: ipi"
    )
    scheme.add_argument("--no-lazy-tlb", action="store_true", help="vCPUs that idle load the kernel's own tables")
    shared.add_traces(parser, "Default: the bundled traces")
    shared.add_config(parser)
    shared.add_files(parser)
    shared.add_quiet(parser)


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
    with progress(quiet=options.quiet) as report:
        found = step(
            lambda: consolidate(
                chosen,
                config,
                cpus=options.cpus,
                quantum=options.quantum,
                schedule=schedule,
                one_machine=options.one_machine,
                costs=costs,
                progress=lambda n: report(f"{len(chosen)} vCPUs", None, n),
                keep_partial=True,
            )
        )
    shared.write_files(options, found.results)
    if not shared.to_stdout(options):
        terminal.say(host_table(found, width=terminal.width(), colour=terminal.colour()))
    return 0 if all(result.complete for result in found.results) else interruption.code()
