"""Names of recorded configurations, and the machine that each stands for.

A name is `<modules>_<backing>`, parts joined by "_": first `eptY`, `eptN` (TDP MMU, older MMU), `tdpY`, `tdpN` or
`nptY`, `nptN` (the same of AMD) or `shadow`; then parameters turned off (`noad`, `nopml`, `novpid`, `noapicv`,
`noflex`, `nour`, `notprshadow`, `noeager`, `nommio`) or on (`nxhp`); last the backing: `4k` (touched), `thp` (2 MB),
`nopre` (4 KB, untouched), perhaps with a letter that tells repeated runs apart. Where a file gives the module
parameters, they decide and the name says the backing only. A parameter that is missing there is one that this KVM does
not have: `pml`, `eptad`, `nx_huge_pages`, `tdp_mmu` (Linux 5.10) and `eager_page_split` (5.17) are off then;
`mmio_caching` (5.19) and `unrestricted_guest` are on, which is what KVM did before one could choose.

An older KVM is the machine of Linux 6.1 with two differences: no splitting ahead, and before 5.16 the page of the APIC
is mapped wherever the processor virtualizes accesses to it (`flexpriority`), not with APICv alone. What else of 5.10's
MMU is different does not show in guest A's exits: its TDP MMU has no fast page faults, the slow path fixes them as
well; an entry that is written again keeps D, so that a fault more is spurious; CR4.PGE forgets kept roots, whose table
pages are found again; tables of upper levels are synchronized where 6.1 lets go of them. Its statistics are others or
none.
"""

from __future__ import annotations

from typing import NamedTuple

from fastmmu import Config, MemorySlot

__all__ = ["Configuration", "configuration"]

APIC_PAGE = MemorySlot(0xFEE0_0000, 0x1000, private=True)
BACKINGS = {"4k": "4k", "thp": "2m", "nopre": "untouched"}
MODULES = ("eptY", "eptN", "tdpY", "tdpN", "nptY", "nptN", "shadow")
PARTS = {"noad", "nopml", "novpid", "noapicv", "noflex", "notprshadow", "nour", "noeager", "nommio", "nxhp"}
NEW = {"pml", "ad", "nx_huge_pages", "tdp_mmu", "eager_page_split"}  # parameters that an older KVM does not have
APIC_PAGE_WITH_APICV = (5, 16)
EAGER_PAGE_SPLIT = (5, 17)


class Configuration(NamedTuple):
    """A machine, and the slots that KVM adds of its own."""

    config: Config
    slots: tuple[MemorySlot, ...]
    apic: Config  # the same for a guest whose APIC is simulated


def configuration(
    name: str,
    vendor: str,
    parameters: dict[str, str] | None = None,
    emulator: str = "",
    kernel: tuple[int, int] = (6, 1),
) -> Configuration:
    """The machine of a name; ValueError names the part that is unknown. kernel: version of Linux.

    emulator: what stood in for the processor. Bochs does not check updates of the guest's A and D flags against EPT W
    (ept.md §4), which shows where EPT has no A/D flags and the guest's tables are write-protected for a dirty log.
    """
    modules, *rest = name.split("_")
    backing = next((part for part in rest if part.rstrip("BC") in BACKINGS), None)
    unknown = [part for part in rest if part != backing and part not in PARTS]
    remedy = "rename it in the recording, or add the part to tests/agreement/configurations.py"
    if modules not in MODULES:
        raise ValueError(f"configuration {name!r}: {modules!r} is none of {', '.join(MODULES)}; {remedy}")
    if backing is None:
        raise ValueError(f"configuration {name!r}: the backing is missing, one of {', '.join(BACKINGS)}; {remedy}")
    if unknown:
        raise ValueError(f"configuration {name!r}: cannot tell what {', '.join(unknown)} stands for; {remedy}")
    on = _parameters(modules, set(rest), vendor, parameters or {}, kernel)
    apic_page = on["apicv"] or (on["flexpriority"] and kernel < APIC_PAGE_WITH_APICV)
    ept = on["ept"]
    config = Config(
        mmu="ept" if ept else "shadow",
        kvm="6.1",
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
    )
    way = "apicv" if on["apicv"] else "flexpriority" if on["flexpriority"] else "trap"
    apic = config.replace(memory="1G", tpr=way, tpr_shadow="notprshadow" not in rest)
    return Configuration(config, (APIC_PAGE,) if apic_page else (), apic)


def _parameters(
    modules: str, parts: set[str], vendor: str, given: dict[str, str], kernel: tuple[int, int]
) -> dict[str, bool]:
    """By what the module says; else by the name. AMD's processor here has no AVIC, so no APIC page is mapped."""
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
        "eager_page_split": "noeager" not in parts and kernel >= EAGER_PAGE_SPLIT,
        "mmio_caching": "nommio" not in parts,
    }
    intel = {"ept": "ept", "ad": "eptad", "pml": "pml", "vpid": "vpid", "apicv": "enable_apicv"}
    intel |= {"flexpriority": "flexpriority", "unrestricted": "unrestricted_guest"}
    amd = {"ept": "npt", "apicv": "avic"}
    common = ("tdp_mmu", "nx_huge_pages", "eager_page_split", "mmio_caching")
    of_vendor = (
        [(k, f"kvm_amd.{v}") for k, v in amd.items()]
        if vendor == "amd"
        else [(k, f"kvm_intel.{v}") for k, v in intel.items()]
    )
    for key, parameter in of_vendor + [(k, f"kvm.{k}") for k in common]:
        if parameter in given:
            named[key] = given[parameter] in ("Y", "1")
        elif given and key in NEW:
            named[key] = False
    return named
