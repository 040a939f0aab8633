"""`fastmmu replay`: a system trace over its own page tables, every physical address compared."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from fastmmu.cli import interruption, terminal
from fastmmu.cli import options as shared
from fastmmu.cli.caches import add_caches
from fastmmu.cli.checkpoint import add_checkpoint, check_checkpoint, checkpoint_of
from fastmmu.cli.progress import UntilInterrupted, progress
from fastmmu.cli.report import add_report, check_report, write_report
from fastmmu.cli.vmm import MMUS, add_agile
from fastmmu.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastmmu.machine.checkpoint.runs import Checkpoint
    from fastmmu.machine.config import Config
    from fastmmu.machine.replay import Replayed
    from fastmmu.machine.result import Result
    from fastmmu.trace.system import SystemTrace

__all__ = ["DESCRIPTION", "EPILOG", "OMISSIONS", "USAGE", "add", "handle"]

OMISSIONS = ("cr3", "stores", "cr3_flush", "invlpg", "invpcid", "page_fault")

USAGE = "[options] TRACE ..."

DESCRIPTION = """\
Carries out each record of a system trace: accesses through TLB and walk of the guest's own tables, stores to these
tables, writes to control registers, invalidations. Compares the physical address of every access, every page fault
with its error code and, at the end, every entry of every page table with its accessed and dirty flags.

Of a trace of several CPUs each has its own registers, TLB and vCPU; tables and memory are shared. Between a store to a
table and a CPU's own flush a stale translation is legal: each use must be equal to a walk now, or to what its CPU may
still hold. See docs/smp.md.
"""

EPILOG = """\
examples:
  fastmmu replay linux.rec.zst
  fastmmu replay linux.rec.zst --mmu ept --vpid --tlb haswell
  fastmmu replay linux.rec.zst --mmu ept --checkpoint linux.ckpt      ended and started again, it goes on
  fastmmu replay linux.rec.zst --schemes            native, shadow, EPT, each with its variants, and dirty logs
  fastmmu replay linux.rec.zst --omit invlpg,stores        what these are good for, in mismatches
  fastmmu replay linux.rec.zst --omit invlpg --find-missing-flushes        and which uses are stale, and why
  fastmmu replay smp2.rec.zst --omit invlpg@1,cr3_flush@0        of several CPUs: the flushes of one of them
  fastmmu replay linux.rec.zst --schemes --report linux.html        a page: tables that sort, pictures
  fastmmu replay smp2.rec.zst --topology 1x1x2        its CPUs are hyperthreads of a core, which share what such do
  fastmmu replay smp2.rec.zst --ipis        its IPIs, and the VM exits that they take by way of the TPR

what --omit takes, a run each (with --tlb strict, unless one is named):
  cr3         writes to CR3
  stores      stores to page tables
  cr3_flush   the invalidations of CR3 writes without bit 63
  invlpg, invpcid, page_fault        the invalidations of these
  invlpg@1                           the same of one CPU, of a trace of several
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("traces", nargs="+", metavar="TRACE", help="the .rec of a system trace, also .gz, .xz, .zst")
    parser.add_argument("--limit", type=shared.count(1), metavar="N", help="only the first N records of each trace")
    parser.add_argument("--omit", type=_omissions, default=[], metavar="LIST", help="leave out, see below; a run each")
    parser.add_argument("--ipis", action="store_true", help="what the IPIs of the trace cost, by way of the TPR")
    parser.add_argument("--schemes", action="store_true", help="in every scheme, with the VM exits side by side")
    scheme = parser.add_argument_group("the scheme")
    scheme.add_argument("--mmu", choices=MMUS, help="default: native")
    add_agile(scheme)
    scheme.add_argument("--vpid", action="store_true", help="TLB entries are tagged: VM entry and exit flush nothing")
    shared.add_memory(scheme)
    shared.add_kvm(scheme, "slides; with --schemes 6.1")
    shared.add_vendor(scheme)
    shared.add_vmm(scheme)
    shared.add_watch(scheme)
    shared.add_topology(scheme)
    shared.add_tlb(parser)
    add_caches(parser)
    add_report(parser)
    add_checkpoint(parser, "records")
    shared.add_jobs(parser)
    shared.add_quiet(parser)


def _omissions(text: str) -> list[str]:
    """A list of OMISSIONS, each also with @ and the number of a CPU."""
    whole = [word.strip().lower() for word in text.split(",") if word.strip()]
    shared.words(OMISSIONS)(",".join(word.partition("@")[0] for word in whole))
    return list(dict.fromkeys(whole))


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.errors import TraceError
    from fastmmu.machine.config import Config
    from fastmmu.trace import read_trace
    from fastmmu.trace.system import SystemTrace

    if options.ipis and (options.schemes or options.omit or options.report):
        raise ConfigError("--ipis replays no memory; leave out --schemes, --omit and --report, or --ipis")
    check_checkpoint(options)
    for name, given in (("--schemes", options.schemes), ("--omit", options.omit), ("--ipis", options.ipis),
                        ("--report", options.report)):  # fmt: skip
        if options.checkpoint is not None and given:
            raise ConfigError(f"--checkpoint is of one replay; leave out {name}, or --checkpoint")
    for name, given in (("--mmu", options.mmu), ("--vpid", options.vpid), ("--omit", options.omit)):
        if options.schemes and given:
            raise ConfigError(f"--schemes runs every scheme as it is; leave out {name}, or --schemes")
    fields = shared.config_fields(options)
    if options.omit:
        fields.setdefault("tlb", "strict")
    config = Config(mmu=options.mmu or "native", vpid=options.vpid, **fields)
    check_report(options)
    page = _Page(options)
    wrong = 0
    for number, name in enumerate(options.traces):
        trace = read_trace(name)
        if not isinstance(trace, SystemTrace):
            raise TraceError("replay takes system traces; use `fastmmu run` for one of a program", path=name)
        if options.limit is not None:
            trace = trace.head(options.limit)
        if options.ipis:
            _ipis(trace, options)
            continue
        if options.schemes:
            differing, interrupted = _schemes(trace, options, page)
        else:
            kept = checkpoint_of(options, number, len(options.traces))
            differing, interrupted = _each(trace, config, options, page, kept)
        wrong += differing
        if interrupted:
            page.write()
            return interruption.code()
    page.write()
    return 1 if wrong else 0


class _Page:
    """What --report is made of: the results of the runs, by their names, in the order of the tables."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.told = None if options.report is None else self._told
        self.found: dict[str, Result] = {}
        self.results: list[Result] = []
        self.names: list[str] = []

    def _told(self, name: str, result: Result) -> None:
        self.found[name] = result

    def add(self, names: Mapping[str, str]) -> None:
        """The runs of a trace have ended. names: of them, to what they are called."""
        for name, called in names.items():
            if name in self.found:
                self.results.append(self.found[name])
                self.names.append(called)
        self.found.clear()

    def write(self) -> None:
        write_report(self.options, self.results, "fastmmu replay", self.names)


def _each(
    trace: SystemTrace, config: Config, options: argparse.Namespace, page: _Page, kept: Checkpoint | None
) -> tuple[int, bool]:
    """A run for each omission, printed; what was wrong in all, and whether a signal came."""
    from fastmmu.study.replay.kept import replay_kept
    from fastmmu.study.replay.run import replays

    wrong, interrupted = 0, False
    omissions = options.omit or [""]
    with progress(quiet=options.quiet) as report:
        how: dict[str, Any] = {"progress": partial(report, trace.name), "keep_partial": True}
        if kept is None:
            runs = replays(trace, config, omissions, jobs=options.jobs, told=page.told, **how)
        else:
            runs = replay_kept(trace, config, kept, **how)
        steps = UntilInterrupted(runs)
        found = list(steps)
    page.add({omission: f"{config.name} without {omission}" if omission else config.name for omission in omissions})
    for omission, replayed, complete in found:
        terminal.say("\n".join(_lines(trace.name, config, replayed, omission)))
        wrong += replayed.wrong + replayed.stale_uses
        if not complete:
            terminal.say("  interrupted: figures of the part that was replayed")
            interrupted = True
    return wrong, interrupted or steps.happened


def _schemes(trace: SystemTrace, options: argparse.Namespace, page: _Page) -> tuple[int, bool]:
    """The table; what was wrong in all, and whether a signal came."""
    from fastmmu.study.replay.run import SCHEMES, replay_schemes
    from fastmmu.study.replay.table import schemes_table

    with progress(quiet=options.quiet) as report:
        how = {"progress": report, "jobs": options.jobs, "told": page.told, **shared.config_fields(options)}
        steps = UntilInterrupted(replay_schemes(trace, **how))
        found = list(steps)
    page.add({scheme: scheme for scheme in SCHEMES})
    terminal.say(schemes_table(found, name=trace.name, width=terminal.width(), colour=terminal.colour()))
    if steps.happened:
        ran = {one.scheme for one in found}
        terminal.say(f"interrupted; not run: {', '.join(name for name in SCHEMES if name not in ran)}")
    return sum(ran.found.wrong for ran in found if ran.found is not None), steps.happened


def _ipis(trace: SystemTrace, options: argparse.Namespace) -> None:
    """The table of the IPIs of a trace."""
    from fastmmu.study.replay.ipis import ipi_costs, ipis_of, ipis_table

    ipis = ipis_of(trace)
    costs = list(ipi_costs(ipis, kvm=options.kvm or "6.1")) if ipis.sent else []
    terminal.say(ipis_table(ipis, costs, name=trace.name, width=terminal.width(), colour=terminal.colour()))


def _lines(name: str, config: Config, found: Replayed, omission: str) -> list[str]:
    watched = bool(found.uses_compared)
    without = f" without {omission}" if omission else ""
    held = ", ".join(f"{number:,} {kind}" for kind, number in found.held_by_kind.items() if number)
    several = f"  {found.cpus} CPUs, {found.ipis:,} IPIs, {found.walks:,} walks alone; held: {held or 'none'}"
    speed = found.accesses / found.seconds / 1e6 if found.seconds else 0.0
    return [
        f"{name}, {config.name}, TLB {config.tlb_name}{without}: {found.records:,} records",
        f"  {found.line()}",
        *([several] * (found.cpus > 1)),
        f"  {found.seconds:.2f} s, {speed:.1f} million accesses a second",
        *(f"    {example}" for example in found.examples[:5]),
        *([f"  {found.stale_uses:,} of {found.uses_compared:,} uses of translations are stale"] * watched),
        *(f"    {stale}" for stale in found.stale[:5]),
    ]
