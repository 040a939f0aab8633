"""Recordings of what KVM did: one JSON file a processor and guest (README.md beside them)."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmmu.exits import ExitReason
from tests.support.recordings import all_of, sample_of

from .configurations import Configuration
from .configurations import configuration as machine_of

__all__ = ["Recording", "data_directories", "recordings", "sample_directory"]

# AMD's KVM names exits by the SVM exit code.
AMD = {
    "npf": "npf",
    "io": "IO_INSTRUCTION",
    "PF excp": "EXCEPTION_NMI",
    "write_cr3": "CR_ACCESS",
    "read_cr4": "CR_ACCESS",
    "write_cr4": "CR_ACCESS",
    "invlpg": "INVLPG",
    "cpuid": "CPUID",
    "write_cr8": "CR_ACCESS",
    "read_cr8": "CR_ACCESS",
    "msr": "MSR_WRITE",
    "vintr": "INTERRUPT_WINDOW",
}
KVM_NAMES = {"WRMSR": "MSR_WRITE", "RDMSR": "MSR_READ", "VIRTUALIZED_EOI": "EOI_INDUCED"}
"""Names of exit reasons that KVM on Intel has differently."""

STATISTICS = (5, 19)
"""Version of Linux from which faults are counted by what became of them."""

VECTORING_TOLD = (5, 12)


@dataclass(frozen=True)
class Recording:
    """One file. guest: its name, a letter. results: configuration -> phase -> what happened."""

    path: Path
    vendor: str
    guest: str
    phases: dict[str, str]
    parameters: dict[str, dict[str, str]]
    emulator: str
    results: dict[str, dict[str, Any]]
    lacks: frozenset[str] = frozenset()  # of AMD's "decodeassists", "nrip_save"
    kernel: tuple[int, int] = (6, 1)  # version of Linux
    tpr_shadow: bool | None = None  # of the processor; None: the file does not say

    @property
    def vectoring(self) -> bool:
        """Does it tell an exit during the delivery of an event? Before Linux 5.12 the tracepoint fires too early."""
        return self.kernel >= VECTORING_TOLD

    def setting(self, configuration: str) -> Configuration:
        """The machine of a configuration."""
        given = self.parameters.get(configuration)
        return machine_of(configuration, self.vendor, given, self.emulator, self.kernel, self.tpr_shadow)

    def exits(self, configuration: str, phase: str) -> dict[str, int]:
        """By reason, in this program's names; those of the host's own timer are listed apart in the file."""
        counted: dict[str, int] = {}
        for name, count in self.results[configuration][phase]["exits"].items():
            key = AMD.get(name, name) if self.vendor == "amd" else name
            counted[key] = counted.get(key, 0) + count
        return counted

    def statistics(self, configuration: str, phase: str) -> dict[str, int] | None:
        """KVM's own, of a phase; without exits by the host's timer. None: this KVM has none, or others than Linux 6, or
        the phase is the first, in which the virtual machine was set up."""
        real = self.results[configuration][phase]
        if not real.get("stat_deltas") or self.kernel < STATISTICS:
            return None
        return {**real["stat_deltas"], "exits": real["stat_deltas"].get("exits", 0) - real["host_interrupt_exits"]}

    def our_statistics(self, statistics: dict[str, int], exits: dict[str, int]) -> dict[str, int]:
        """Those of this machine, as this processor makes them: without decode assists KVM emulates what exits for a
        control register or INVLPG, without the next RIP CPUID, to step over it."""
        emulated = exits.get("CR_ACCESS", 0) + exits.get("INVLPG", 0) if "decodeassists" in self.lacks else 0
        emulated += exits.get("CPUID", 0) if "nrip_save" in self.lacks else 0
        found = {**statistics, "insn_emulation": statistics.get("insn_emulation", 0) + emulated}
        return {name: n for name, n in found.items() if name in statistics}

    def ours(self, exits: dict[ExitReason, int]) -> dict[str, int]:
        """Exits of this machine in the same names."""
        counted: dict[str, int] = {}
        for reason, count in exits.items():
            key = "npf" if reason == ExitReason.NPF else KVM_NAMES.get(reason.name, reason.name)
            counted[key] = counted.get(key, 0) + count
        return counted


def sample_directory() -> Path:
    """The reduced recordings that the project carries."""
    return sample_of("kvm_exits")


def data_directories() -> list[Path]:
    """FASTMMU_KVM_EXITS, a list of folders as PATH is one, else kvm-exits and kvm-exits-more of ../shared."""
    named = os.environ.get("FASTMMU_KVM_EXITS")
    if named:
        return [Path(part) for part in named.split(os.pathsep) if part]
    return [all_of(name, "FASTMMU_KVM_EXITS") for name in ("kvm-exits", "kvm-exits-more")]


def recordings(*directories: Path) -> list[Recording]:
    """Every file of these folders that is one, in the order of names."""
    found = []
    for path in [path for directory in directories for path in sorted(directory.glob("*.json"))]:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or not {"results", "workload_name", "phases"} <= set(content):
            continue
        text = json.dumps(content.get("environment", {}))
        kernel = re.search(r"\b(\d+)\.(\d+)\.\d+", content.get("environment", {}).get("l0_kernel", ""))
        flags = content.get("environment", {}).get("vmx_flags")
        lacks = {name for name in ("decodeassists", "nrip_save") if f"no {name}" in text}
        found.append(
            Recording(
                path=path,
                vendor="amd" if "kvm-amd" in text else "intel",
                guest=content["workload_name"],
                phases=content["phases"],
                parameters=content.get("module_parameters", {}),
                emulator="bochs" if "Bochs" in text else "qemu",
                results=content["results"],
                lacks=frozenset(lacks),
                kernel=(int(kernel[1]), int(kernel[2])) if kernel else (6, 1),
                tpr_shadow=None if flags is None else "vtpr" in flags.split(),
            )
        )
    return found
