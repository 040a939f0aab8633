"""The machine that a recorded configuration stands for: by KVM's module parameters, else by its name.

Where a file gives the module parameters of a configuration they decide, and its name says the backing alone: `4k`
(touched), `thp` (2 MB) or `nopre` (4 KB, untouched), perhaps with a letter that tells repeated runs apart. A parameter
that is missing there is one that this KVM does not have: `pml`, `eptad`, `nx_huge_pages`, `tdp_mmu` (Linux 5.10) and
`eager_page_split` (5.17) are off then; `mmio_caching` (5.19) and `unrestricted_guest` are on, which is what KVM did
before one could choose. What a machine cannot be given is told as "not modelled: parameter=value".

Without parameters the name is `<modules>_<backing>`, parts joined by "_": first `eptY`, `eptN` (TDP MMU, older MMU),
`tdpY`, `tdpN` or `nptY`, `nptN` (the same of AMD) or `shadow`; then parameters turned off (`noad`, `nopml`, `novpid`,
`noapicv`, `noflex`, `nour`, `notprshadow`, `noeager`, `nommio`) or on (`nxhp`).

The version of Linux picks the row of `fastmmu.kvm_versions`. What else of 5.10's MMU is different does not show in
guest A's exits: its TDP MMU has no fast page faults, the slow path fixes them as well; CR4.PGE forgets kept roots,
whose table pages are found again; tables of upper levels are synchronized where 6.1 lets go of them. Its statistics are
others or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fastmmu import Config, MemorySlot
from fastmmu.kvm_versions import KVM_VERSIONS

__all__ = ["Configuration", "configuration"]

BACKINGS = {"4k": "4k", "thp": "2m", "nopre": "untouched"}
MODULES = ("eptY", "eptN", "tdpY", "tdpN", "nptY", "nptN", "shadow")
PARTS = {"noad", "nopml", "novpid", "noapicv", "noflex", "notprshadow", "nour", "noeager", "nommio", "nxhp"}
NEW = {"pml", "ad", "nx_huge_pages", "tdp_mmu", "eager_page_split"}  # parameters that an older KVM does not have
INTEL = {
    "ept": "ept",
    "ad": "eptad",
    "pml": "pml",
    "vpid": "vpid",
    "apicv": "enable_apicv",
    "flexpriority": "flexpriority",
    "unrestricted": "unrestricted_guest",
}
AMD = {"ept": "npt"}
COMMON = ("tdp_mmu", "nx_huge_pages", "eager_page_split", "mmio_caching")
ONLY = {"kvm_amd.avic": "N"}
"""Parameters of which a machine has one value alone."""
UNSEEN = {
    *("preemption_timer", "nested", "nested_early_check", "vgif", "vls", "nrips", "vnmi", "lbrv", "tsc_scaling"),
    *(
        "pause_filter_count",
        "pause_filter_thresh",
        "ple_gap",
        "ple_window",
        "ple_window_max",
        "emulate_invalid_guest_state",
    ),
    *("halt_poll_ns", "halt_poll_ns_grow", "halt_poll_ns_shrink", "lapic_timer_advance_ns", "kvmclock_periodic_sync"),
    *("nx_huge_pages_recovery_ratio", "nx_huge_pages_recovery_period_ms", "ignore_msrs", "report_ignored_msrs"),
    *("vector_hashing", "enable_ipiv", "enable_pmu", "enable_sgx", "pt_mode", "fasteoi", "vmentry_l1d_flush"),
    *("dump_invalid_vmcs", "dump_invalid_vmcb", "error_on_inconsistent_vmcs_config", "tsc_tolerance_ppm"),
    *("sev", "sev_es", "intercept_smi", "min_timer_period_us", "pi_inject_timer", "allow_smaller_maxphyaddr"),
}
"""Parameters whose value nothing shows that is compared, for guests of one vCPU that have no guest of their own."""


class Configuration(NamedTuple):
    """A machine, and the slots that KVM adds to its own (a `fastmmu.Machine` does so itself)."""

    config: Config
    slots: tuple[MemorySlot, ...]
    not_modelled: tuple[str, ...] = ()  # "parameter=value" each


def configuration(
    name: str,
    vendor: str,
    parameters: dict[str, str] | None = None,
    emulator: str = "",
    kernel: tuple[int, int] = (6, 1),
    tpr_shadow: bool | None = None,
) -> Configuration:
    """The machine of a configuration; ValueError names the part of its name that is unknown. kernel: version of Linux.
    tpr_shadow: of the processor; None: as the name says.

    emulator: what stood in for the processor. Bochs does not check updates of the guest's A and D flags against EPT W
    (ept.md §4), which shows where EPT has no A/D flags and the guest's tables are write-protected for a dirty log.
    """
    given = parameters or {}
    modules, *rest = name.split("_")
    backing = next((part for part in rest if part.rstrip("BC") in BACKINGS), None)
    unknown = [part for part in rest if part != backing and part not in PARTS]
    remedy = "rename it in the recording, or add the part to tests/agreement/configurations.py"
    if modules not in MODULES and not given:
        raise ValueError(f"configuration {name!r}: {modules!r} is none of {', '.join(MODULES)}; {remedy}")
    if backing is None:
        raise ValueError(f"configuration {name!r}: the backing is missing, one of {', '.join(BACKINGS)}; {remedy}")
    if unknown and not given:
        raise ValueError(f"configuration {name!r}: cannot tell what {', '.join(unknown)} stands for; {remedy}")
    on = _parameters(modules, set(rest), vendor, given)
    shadow = "notprshadow" not in rest if tpr_shadow is None else tpr_shadow
    kvm, missing = _version(kernel)
    ept = on["ept"]
    config = Config(
        mmu="ept" if ept else "shadow",
        kvm=kvm,
        vendor="amd" if vendor == "amd" else "intel",
        vpid=on["vpid"],
        ept_ad=on["ad"] or vendor == "amd",
        pml=ept and on["ad"] and on["pml"] and vendor == "intel",
        tdp_mmu=on["tdp_mmu"],
        nx_huge_pages=on["nx_huge_pages"],
        eager_page_split=on["eager_page_split"],
        mmio_caching=on["mmio_caching"],
        guest_ad_checked=emulator != "bochs",
        unrestricted_guest=on["unrestricted"],
        host_pages=BACKINGS[backing.rstrip("BC")],
        memory="1G",
        tpr="trap" if not shadow else "apicv" if on["apicv"] else "flexpriority" if on["flexpriority"] else "trap",
        tpr_shadow=shadow,
        apic_access_page=None if on["flexpriority"] else False,
    )
    page = MemorySlot(0xFEE0_0000, 0x1000, private=True, emulated=config.apic_page == "emulated")
    slots = () if config.apic_page == "none" else (page,)
    return Configuration(config, slots, (*missing, *_not_modelled(given)))


def _version(kernel: tuple[int, int]) -> tuple[Any, list[str]]:
    """The newest row that is not newer; and what to say where there is none."""
    older = [name for name, version in KVM_VERSIONS.items() if name != "slides" and version <= kernel]
    return (older[-1], []) if older else ("5.10", [f"Linux={kernel[0]}.{kernel[1]}"])


def _not_modelled(given: dict[str, str]) -> Iterator[str]:
    known = {f"kvm_intel.{p}" for p in INTEL.values()} | {f"kvm_amd.{p}" for p in AMD.values()}
    known |= {f"kvm.{p}" for p in COMMON}
    for parameter, value in given.items():
        if parameter in known or parameter.partition(".")[2] in UNSEEN:
            continue
        if parameter not in ONLY or _on(value) != _on(ONLY[parameter]):
            yield f"{parameter}={value}"


def _on(value: str) -> bool:
    return value in ("Y", "y", "1")


def _parameters(modules: str, parts: set[str], vendor: str, given: dict[str, str]) -> dict[str, bool]:
    """By what the module says; without that by the name."""
    named = {
        "ept": modules != "shadow",
        "tdp_mmu": modules.endswith("Y"),
        "ad": "noad" not in parts,
        "pml": not parts & {"noad", "nopml"},
        "vpid": "novpid" not in parts,
        "apicv": vendor == "intel" and not parts & {"noapicv", "noflex", "notprshadow"},
        "flexpriority": vendor == "intel" and not parts & {"noflex", "notprshadow"},
        "nx_huge_pages": "nxhp" in parts,
        "unrestricted": "nour" not in parts,
        "eager_page_split": "noeager" not in parts,
        "mmio_caching": "nommio" not in parts,
    }
    if given:
        named |= {"ept": True, "vpid": True, "mmio_caching": True, "unrestricted": True}
        named |= dict.fromkeys(("apicv", "flexpriority"), vendor == "intel") | dict.fromkeys(NEW, False)
    of_vendor = (
        [(k, f"kvm_amd.{v}") for k, v in AMD.items()]
        if vendor == "amd"
        else [(k, f"kvm_intel.{v}") for k, v in INTEL.items()]
    )
    for key, parameter in of_vendor + [(k, f"kvm.{k}") for k in COMMON]:
        if parameter in given:
            named[key] = _on(given[parameter])
    return named
