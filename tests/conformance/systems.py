"""System traces: a whole Linux over its own page tables, replayed natively and over EPT.

    addresses     the physical address of every access
    page_faults   every #PF: that it is one, its error code and CR2
    tables        every entry of every page table at the end, accessed and dirty flags too
    uses          in strict modes: every use of a cached translation is backed by memory

Nothing is masked. The trace leaves out some fetches of the second page of an instruction that crosses pages, and those
of the first instructions; a replay does what is recorded, so neither shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastmmu import Config
from fastmmu.errors import TraceError
from fastmmu.machine.replay import Replay
from fastmmu.trace import read_trace
from fastmmu.trace.system import SystemTrace
from tests.support.recordings import all_of, sample_of

from .vectors import Report

__all__ = [
    "MODES",
    "any_data",
    "data_directory",
    "reports",
    "run",
    "sample_directory",
    "smp_directory",
    "smp_sample_directory",
    "traces",
]

MODES = {
    "hardware": Config(),
    "strict": Config(tlb="strict", find_missing_flushes=True),
    "hardware_ept": Config(mmu="ept", vpid=True),
    "strict_ept": Config(mmu="ept", vpid=True, tlb="strict", find_missing_flushes=True),
}
"""Mode of the TLB, natively and over EPT. A strict one has every use of a cached translation compared with memory."""


def sample_directory() -> Path:
    """The cut traces that the project carries."""
    return sample_of("systems")


def data_directory() -> Path:
    """FASTMMU_TRACES, else ../shared/traces beside the project."""
    return all_of("traces", "FASTMMU_TRACES")


def smp_sample_directory() -> Path:
    """A cut trace of two CPUs that the project carries, without its end."""
    return sample_of("systems_smp")


def smp_directory() -> Path:
    """FASTMMU_TRACES_SMP, else ../shared/traces-smp beside the project: traces of several CPUs."""
    return all_of("traces-smp", "FASTMMU_TRACES_SMP")


def traces(directory: Path) -> list[Path]:
    """The system traces of a directory, in the order of their names."""
    return sorted(
        path for path in directory.glob("*.rec*") if path.name.partition(".rec")[2] in ("", ".gz", ".xz", ".zst")
    )


def any_data(directory: Path) -> bool:
    """Is there anything to compare?"""
    return bool(traces(directory))


def reports(path: Path, mode: str) -> tuple[list[Report], float, int]:
    """What a replay came to: reports, seconds of the replay, accesses."""
    trace = read_trace(path)
    if not isinstance(trace, SystemTrace):
        raise TraceError("no system trace", path=str(path))
    replay = Replay(trace, MODES[mode])
    for _ in replay.steps():
        pass
    found = replay.result()
    kinds = found.by_kind
    made = [
        Report(f"{trace.name}/{mode}/addresses", found.accesses, kinds["address"] + kinds["faulted"]),
        Report(f"{trace.name}/{mode}/page_faults", found.page_faults, kinds["no fault"] + kinds["fault"]),
        Report(f"{trace.name}/{mode}/tables", found.entries or 0, found.different or 0),
    ]
    made[0].examples = [*found.examples, *map(str, found.stale)]
    if found.uses_compared:
        made.append(Report(f"{trace.name}/{mode}/uses", found.uses_compared, found.stale_uses))
    if found.entries is None:
        made[2].not_compared["the trace does not say how its page tables end"] = found.tables
    return made, found.seconds, found.accesses


def run(directory: Path | None, only: str) -> int | None:
    """Replays every trace in every mode; the number of mismatches, None where there was nothing to run."""
    chosen = directory or data_directory()
    if not traces(chosen):
        print(
            f"no system traces in {chosen}: the sample in the project is used; FASTMMU_TRACES names another directory"
        )
        chosen = sample_directory()
    mismatches = None
    for path, mode in jobs(chosen, only):
        mismatches = mismatches or 0
        made, seconds, accesses = reports(path, mode)
        for report in made:
            print(report.line())
            mismatches += report.mismatches
        print(f"    {seconds:.2f} s, {accesses / seconds / 1e6:.1f} million accesses a second", flush=True)
        for example in made[0].examples[:5]:
            print(f"    {example}")
    return mismatches


def jobs(directory: Path, only: str) -> Iterator[tuple[Path, str]]:
    for path in traces(directory):
        for mode in MODES:
            if only in f"{path.name}/{mode}":
                yield path, mode
