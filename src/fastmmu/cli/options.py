"""Options that the commands share, and what they make: traces, a configuration, a cost model, files of results."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastmmu.cli import terminal
from fastmmu.cli.caches import add_caches
from fastmmu.cli.frames import add_frames
from fastmmu.cli.vmm import KVM_VERSIONS, add_kvm, add_vendor, add_vmm, vmm_of
from fastmmu.errors import ConfigError, TraceError
from fastmmu.sizes import page_size
from fastmmu.trace.formats import FORMATS
from fastmmu.trace.names import CODECS

if TYPE_CHECKING:
    from fastmmu.machine.costs import CostModel
    from fastmmu.machine.result import Result
    from fastmmu.trace import Trace

__all__ = [
    "KVM_VERSIONS", "RUNS", "add_config", "add_costs", "add_files", "add_jobs", "add_kvm", "add_memory", "add_pages",
    "add_quiet", "add_tlb", "add_topology", "add_traces", "add_vendor", "add_vmm", "add_watch", "check_files",
    "config_fields", "cost_model", "count", "hexadecimal", "named_trace", "pages", "share", "to_stdout", "traces",
    "words", "write_files", "write_rows",
]  # fmt: skip

_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_CONFIG = ("host_pages", "exit_pages", "frames", "host_frames", "host_thp", "premapped", "tlb", "l1d", "l1i", "stlb",
           "replacement", "psc", "epsc", "gpm", "caches", "topology", "shared", "pcid", "memory", "exit_every", "thp",
           "defrag", "unmovable", "thp_threshold", "tpr", "vendor", "shootdown", "tlb_extension", "agile")  # fmt: skip
HOST_PAGES = ("4k", "2m", "untouched")  # named here, so that --help loads no more: tests/cli/test_commands.py
WAYS, WORKLOADS = ("trap", "patch", "flexpriority", "apicv"), ("winxp", "win2003", "linux")


# ---- types of arguments -------------------------------------------------------------------------------------------


def count(least: int) -> Callable[[str], int]:
    """A type for argparse: an integer, also as 10_000, 50k, 2M (decimal units), not below `least`."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"([0-9_]+)([kmg]?)", text.strip().lower())
        value = int(match[1]) * _UNITS[match[2]] if match and match[1].strip("_") else -1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no number >= {least}; write 50000, 50_000 or 50k")
        return value

    return parse


def hexadecimal(text: str) -> int:
    """A type for argparse: a register or address, hexadecimal with or without 0x; underscores are ignored."""
    digits = text.strip().lower().replace("_", "").removeprefix("0x")
    if not re.fullmatch(r"[0-9a-f]{1,16}", digits):
        raise argparse.ArgumentTypeError(f"{text!r} is no hexadecimal number of up to 64 bits")
    return int(digits, 16)


def pages(*known: str, otherwise: str = "") -> Callable[[str], str]:
    """A type for argparse: a page size in any case of letters, or another word, out of `known`."""

    def parse(text: str) -> str:
        found = page_size(text)
        if found not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}{otherwise}")
        return found

    return parse


def add_pages(group: Any, *known: str) -> None:
    """--pages, of the guest; the first is the default."""
    group.add_argument(
        "--pages",
        type=pages(*known),
        default=known[0],
        metavar="|".join(known),
        help=f"guest pages; default: {known[0]}",
    )


def share(text: str) -> float:
    """A type for argparse: a part of something, as 0.5 or 50%; above 0, at most all of it."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write one above 0, at most 1, as 0.5 or 50%")
    return value


def words(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A type for argparse: a list out of `known`, separated by commas, each once, in any case of letters."""

    def parse(text: str) -> list[str]:
        found = list(dict.fromkeys(page_size(word) for word in text.split(",") if word.strip()))
        for word in found:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        if not found:
            raise argparse.ArgumentTypeError(f"name at least one of {', '.join(known)}")
        return found

    return parse


# ---- traces -------------------------------------------------------------------------------------------------------

RUNS = "Without --switch-every each is a run of its own. Default: the bundled traces"


def add_traces(parser: argparse.ArgumentParser, more: str, *, nargs: str = "*", vcpus: tuple[str, ...] = ()) -> None:
    """TRACE… and what is made of them; `more` ends the help; `vcpus`: more ways to take threads."""
    said = [format.said for format in FORMATS.values()]
    parser.add_argument(
        "traces",
        nargs=nargs,
        metavar="TRACE",
        help=f"{', '.join(said[:-1])} or {said[-1]}, also {', '.join(CODECS)}; or the name of a bundled trace. {more}",
    )
    group = parser.add_argument_group("the trace")
    group.add_argument("--format", choices=tuple(FORMATS), help="default: by name or content")
    group.add_argument(
        "--skip-other-lines", action="store_true", help="of lackey text: leave out, and count, what the program wrote"
    )
    group.add_argument("--columns", metavar="WORDS", help='of text: what a line holds, as "op addr:hex size" or "addr"')
    how = "of drmemtrace: by time, or each a process" + "; vcpus: all traces are threads, of one machine" * bool(vcpus)
    group.add_argument("--threads", choices=("together", "apart", *vcpus), help=how)
    group.add_argument("--v2p", metavar="FILE", help='of drmemtrace: where pages lay; default: the folder\'s; "none"')
    group.add_argument("--data-only", action="store_true", help="leave out instruction fetches")
    group.add_argument("--skip", type=count(0), metavar="N", help="leave out the first N events of each trace")
    group.add_argument(
        "--limit", type=count(1), metavar="N", help="only the first N events of each trace (behind those)"
    )
    group.add_argument(
        "--switch-every",
        type=count(1),
        metavar="N",
        help="the traces are processes of one guest, which switches between them every N accesses",
    )


def named_trace(name: str, format: str | None = None, **how: Any) -> Trace:
    """A trace by its file, or a bundled one by its name."""
    from pathlib import Path

    from fastmmu.trace import bundled, read_trace

    if not Path(name).exists() and name in bundled():
        return read_trace(bundled()[name], format)
    try:
        return read_trace(name, format, **how)
    except TraceError as error:
        if Path(name).exists() or "/" in name or not bundled():
            raise
        raise TraceError(f"{error}; the bundled traces are {', '.join(bundled())}") from error


def traces(options: argparse.Namespace, *, system: bool = False) -> list[Trace]:
    """The traces to run, each by itself; `system`: those of whole machines are taken as well."""
    from fastmmu.trace import bundled, interleave

    names = options.traces or list(bundled())
    if not names:
        raise TraceError("no trace is named, and this installation has no bundled ones; name a file")
    how = {"skip_other_lines": options.skip_other_lines, "columns": options.columns}
    how |= {name: value for name in ("threads", "v2p") if (value := getattr(options, name)) and value != "vcpus"}
    found = [named_trace(name, options.format, **how) for name in names]
    options.opened = list(found)  # what is noted of them while they are read is told at the end
    _tell_apart(found)
    for name, trace in zip(names, found, strict=True):
        if not system and trace.kind == "system":
            raise TraceError(
                "this is a system trace, of a whole machine; the command takes traces of programs. `fastmmu replay` "
                "runs it, in every scheme with --schemes",
                path=name,
            )
    if options.data_only:
        found = [trace.data_only() for trace in found]
    if options.skip:
        found = [trace.skip(options.skip) for trace in found]
    if options.limit is not None:
        found = [trace.head(options.limit) for trace in found]
    if options.switch_every is not None:
        found = [interleave(found, options.switch_every)]
    traffic = _traffic(options)
    if traffic not in (None, "none"):
        from fastmmu.trace.tpr import with_tpr

        vcpus = len(found) if getattr(options, "one_machine", False) else 1
        found = [with_tpr(trace, str(traffic), i % vcpus, vcpus) for i, trace in enumerate(found)]
    return found


def _tell_apart(found: Sequence[Trace]) -> None:
    """Traces in different files get different names: with their folders where the files are called the same."""
    from pathlib import Path

    for longer in (lambda trace: f"{Path(trace.path).parent}/{trace.name}", lambda trace: trace.path):
        names = [trace.name for trace in found]
        for trace in [t for t in found if len({other.path for other in found if other.name == t.name}) > 1]:
            if trace.name in names:
                trace.name = longer(trace)


# ---- configuration ------------------------------------------------------------------------------------------------


def add_config(parser: argparse.ArgumentParser, *, apic: bool = True, kvm: bool = True) -> None:
    """Fields of Config that are no part of the scheme, cost model; `apic`: also --tpr, --traffic; `kvm`: also --kvm."""
    guest = parser.add_argument_group("the guest and its memory")
    guest.add_argument("--premapped", action="store_true", help="all tables stand beforehand: no faults, no kernel")
    guest.add_argument("--pcid", action="store_true", help="the guest kernel uses PCIDs: CR3 loads flush nothing")
    guest.add_argument("--exit-every", type=count(0), metavar="N", help="a CPUID exit after each N accesses")
    add_memory(guest)
    add_frames(guest)
    guest.add_argument("--thp-threshold", type=count(1), metavar="N", help="pages touched that make a 2 MB page (64)")
    if apic:
        guest.add_argument("--tpr", choices=WAYS, help="the guest has a local APIC, handled in this way")
        guest.add_argument(
            "--traffic",
            choices=(*WORKLOADS, "none"),
            help="what it does with it; none: what the trace says; default: winxp",
        )
    if kvm:
        add_kvm(guest)
    add_vmm(guest)
    add_tlb(parser)
    add_caches(parser)
    add_costs(parser)


def add_costs(parser: argparse.ArgumentParser) -> None:
    """--costs, --generation."""
    model = parser.add_argument_group("the cost model")
    model.add_argument("--costs", metavar="FILE", help="TOML with the values that differ from fastmmu's costs.toml")
    model.add_argument("--generation", metavar="NAME", help="processor whose VM exits count: prescott ... icelake, zen")


def add_memory(group: Any) -> None:
    """--memory, --host-pages, --exit-pages."""
    group.add_argument("--memory", metavar="SIZE", help="guest memory, as in 64G (the default)")
    group.add_argument(
        "--host-pages",
        type=pages(*HOST_PAGES, otherwise="; pages of its own that the host touches at each exit are --exit-pages N"),
        metavar="|".join(HOST_PAGES),
        help="how the VMM maps it; default: 4k for --pages 4k, else 2m; untouched: 4k, each given at its first touch",
    )
    group.add_argument(
        "--exit-pages", type=count(0), metavar="N", help="pages of its own that the host touches at each VM exit"
    )


def add_watch(group: Any) -> None:
    """--find-missing-flushes."""
    group.add_argument(
        "--find-missing-flushes",
        action="store_true",
        help="compare every use of a cached translation with memory, with a TLB that keeps all it may (--tlb strict)",
    )


def add_tlb(parser: argparse.ArgumentParser) -> None:
    """--tlb and the sizes of its arrays."""
    tlb = parser.add_argument_group("the TLB")
    tlb.add_argument("--tlb", metavar="PRESET", help="skylake (default), zen2, ...; strict: as much as any may keep")
    tlb.add_argument("--l1d", metavar="E/W", help="entries/ways of the 4 KB array for data: 64/4; 64/4 + 2m 32/4")
    tlb.add_argument("--l1i", metavar="E/W", help="the same for instructions")
    tlb.add_argument("--stlb", metavar="E/W", help="the same of the second level")
    tlb.add_argument("--no-walk-caches", action="store_true", help="each walk starts at the root")
    tlb.add_argument("--replacement", metavar="WORD", help="lru (the default), plru, random:7, srrip, chirp; lru,srrip")
    tlb.add_argument("--psc", metavar="SIZES", help="caches of paging structures: PML4E/PDPTE/PDE 2/4/32, 64/fa, none")
    tlb.add_argument("--epsc", metavar="SIZES", help="the same of EPT structures")
    tlb.add_argument("--gpm", metavar="E/W", help="guest-physical mappings: 64/fa, shared (second level), off")
    tlb.add_argument("--tlb-extension", metavar="WORDS", help="before a walk: clustered:8, pom:16m, mix:1536/12, ...")


def add_topology(group: Any) -> None:
    """--topology, --shared."""
    group.add_argument(
        "--topology", metavar="PxCxT", help="packages, cores, hyperthreads of a core: 1x1x2; default: each CPU a core"
    )
    group.add_argument(
        "--shared", metavar="WORDS", help="what hyperthreads share, of l1,l2,psc,gpm, or none; default: l2,psc"
    )


def config_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of Config that were given."""
    given = {name: getattr(options, name, None) for name in _CONFIG}
    fields = {name: value for name, value in given.items() if value is not None and value is not False}
    if isinstance(getattr(options, "kvm", None), str):
        fields["kvm"] = options.kvm
    if getattr(options, "vmm", None):
        fields["vmm"] = vmm_of(options.vmm)
    if getattr(options, "no_walk_caches", False):
        fields["walk_caches"] = False
    if getattr(options, "find_missing_flushes", False):
        fields |= {"find_missing_flushes": True, "tlb": fields.get("tlb", "strict")}
    fields = {**getattr(options, "config_further", {}), **fields}
    if traffic := _traffic(options):
        from fastmmu.trace.tpr import PROFILES

        handler = PROFILES[traffic].handler if traffic in PROFILES else "eoi"
        fields = {"memory": "2G", "tpr": "flexpriority", "guest_handler": handler, **fields}
    return fields


def _traffic(options: argparse.Namespace) -> str | None:
    """The TPR traffic that was asked for, None without an APIC."""
    chosen: str | None = getattr(options, "traffic", None)
    return chosen or ("winxp" if getattr(options, "tpr", None) else None)


def cost_model(options: argparse.Namespace) -> CostModel:
    """The cost model that was asked for."""
    from fastmmu.machine.costs import CostModel

    return CostModel.load(options.costs, generation=options.generation)


# ---- results ------------------------------------------------------------------------------------------------------


def add_files(parser: argparse.ArgumentParser, row: str = "a row a run", whole: str = "everything, nested") -> None:
    """--json, --csv, --parquet."""
    group = parser.add_argument_group("results")
    group.add_argument("--json", metavar="FILE", help=f"{whole}; - writes to standard output, and no table")
    group.add_argument("--csv", metavar="FILE", help=f"{row}; - writes to standard output, and no table")
    group.add_argument("--parquet", metavar="FILE", help=f"{row} (needs fastmmu[arrow])")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """--quiet."""
    parser.add_argument("--quiet", action="store_true", help="no progress on the terminal")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """--jobs."""
    parser.add_argument(
        "--jobs", type=count(1), metavar="N", help="threads, which change no result; default: one a processor"
    )


def to_stdout(options: argparse.Namespace) -> bool:
    """Whether standard output is for data, so that no table is printed."""
    return "-" in (options.json, options.csv)


def check_files(options: argparse.Namespace) -> None:
    """Refuse before the run what could not be written after it."""
    from fastmmu.report import files

    if options.json == options.csv == "-":
        raise ConfigError("--json - and --csv - cannot both go to standard output; name a file for one")
    if options.parquet == "-":
        raise ConfigError("--parquet - : a Parquet file is binary; name a file")
    for format in files.FORMATS:
        path = getattr(options, format)
        if path not in (None, "-"):
            files.check_target(path, format)


def write_files(options: argparse.Namespace, results: Sequence[Result]) -> None:
    """Write the results where the options say."""
    from fastmmu.report import files, over_time

    rows = over_time(results)
    _write(options, lambda format: files.encode(rows, format, getattr(options, "command_line", "")))


def write_rows(options: argparse.Namespace, table: Sequence[dict[str, Any]], key: str) -> None:
    """Write flat rows where the options say."""
    from fastmmu.report import files

    _write(options, lambda format: files.encode_rows(table, format, key, getattr(options, "command_line", "")))


def _write(options: argparse.Namespace, encode: Callable[[str], bytes]) -> None:
    """Every file that can be written is written; then the first error is raised."""
    from fastmmu.report import files

    failure: OSError | None = None
    for format in files.FORMATS:
        path = getattr(options, format)
        try:
            if path == "-":
                terminal.put(encode(format).decode())
            elif path is not None:
                files.write_whole(path, encode(format))
        except OSError as error:
            failure = failure or error
    if failure is not None:
        raise failure
