"""Names of causes and exit reasons for people."""

from __future__ import annotations

from fastmmu.counters import CAUSES
from fastmmu.exits import REASON_NAMES
from fastmmu.machine.cache_result import CAUSES as CACHE_CAUSES
from fastmmu.machine.costs import CLASSES
from fastmmu.machine.result import Result
from fastmmu.tlb.arrays import replacement_name

__all__ = ["cause_name", "known_causes", "reason_title", "settings", "structure_name"]

_REASONS = {
    "exception_nmi": "#PF",
    "cr_access": "CR3",
    "invlpg": "INVLPG",
    "ept_violation": "EPT",
    "ept_misconfig": "misconf",
    "npf": "NPF",
    "cpuid": "CPUID",
    "external_interrupt": "intr",
    "io_instruction": "I/O",
    "hlt": "HLT",
    "apic_access": "APIC",
    "apic_write": "APIC write",
    "tpr_below_threshold": "TPR",
    "interrupt_window": "window",
    "virtualized_eoi": "EOI",
    "vmcall": "VMCALL",
}
_SVM = {
    "exception_nmi": "EXCP14",
    "cr_access": "CR",
    "external_interrupt": "INTR",
    "interrupt_window": "VINTR",
    "io_instruction": "IOIO",
    "vmcall": "VMMCALL",
}  # exit codes of AMD, where they are others
_CAUSES = {
    **CAUSES,
    **CACHE_CAUSES,
    "exit:pf_fast": "rights given back",
    "exit:pf_retry": "faults begun anew",
    "exit:pf_fixed": "shadow fills",
    "exit:pf_guest": "page faults reflected",
    "exit:pf_emulate": "page-table writes emulated",
    "exit:pf_spurious": "spurious page faults",
    "exit:ept_build": "EPT violations",
    "exit:ept_violation": "EPT violations",
    "exit:ept_spurious": "spurious EPT violations",
    "exit:ept_misconfig": "EPT misconfigurations",
    "exit:npf": "nested page faults",
    "exit:dirty": "dirty-log faults",
    "exit:mmio": "MMIO",
    "exit:cr_access": "CR3 exits",
    "exit:invlpg": "INVLPG exits",
    "exit:exception_nmi": "other exceptions",
    "exit:cpuid": "CPUID exits",
    "exit:external_interrupt": "interrupt exits",
    "exit:apic_access": "APIC accesses emulated",
    "exit:tpr_below_threshold": "TPR-below-threshold exits",
    "exit:vmcall": "polls of patched code",
}


def known_causes() -> tuple[str, ...]:
    """Every key that ``Result.cycles_by`` may have."""
    kinds = [name for names in CLASSES.values() for name in names]
    return (*CAUSES, *CACHE_CAUSES, *(f"exit:{kind}" for kind in dict.fromkeys([*kinds, *REASON_NAMES])))


def reason_title(reason: str, vendor: str = "intel") -> str:
    """Heading of an exit reason: short, as the field calls it; of AMD its exit code."""
    if vendor == "amd" and reason in _SVM:
        return _SVM[reason]
    return _REASONS.get(reason, reason.replace("_", " "))


def cause_name(cause: str, *, mmu: str) -> str:
    """What a key of ``Result.cycles_by`` stands for."""
    if cause == "guest_walk" and mmu in ("shadow", "agile"):
        return "references to shadow tables" if mmu == "shadow" else "references to shadow and guest tables"
    return _CAUSES.get(cause) or f"{cause.removeprefix('exit:').replace('_', ' ')} exits"


def structure_name(name: str) -> str:
    """A structure of ``Result.mpki_by`` in words, without "misses"."""
    known = {"l1i": "L1I TLB", "l1d": "L1D TLB", "stlb": "last-level TLB", "gpm": "guest-physical mapping"}
    what, _, level = name.rpartition("_")
    return known.get(name) or f"{'EPT ' if what else ''}{level.upper()} cache"


def settings(result: Result) -> str:
    """What a run's configuration says beside the scheme, in one line."""
    config = result.config
    fields = ("l1d", "l1i", "stlb", "psc", "epsc", "gpm")
    given = [f"{key} {value}" for key in fields if (value := getattr(config, key))]
    parts = [f"TLB {config.tlb_name}" + (f" with {', '.join(given)}" if given else "")]
    parts.append(", ".join(replacement_name(policy) for policy in dict.fromkeys(config.geometry.replacement)))
    if config.premapped:
        parts.append("premapped")
    if config.pcid:
        parts.append("PCIDs")
    if config.exit_every:
        parts.append(f"an exit every {config.exit_every:,} accesses")
    return ", ".join(parts)
