"""Names of recorded configurations, and the machine that each stands for.

A name is `<modules>_<backing>`, parts joined by "_": first `eptY`, `eptN` (TDP MMU, older MMU), `tdpY`, `tdpN` (the
same of AMD) or `shadow`; then parameters turned off (`noad`, `nopml`, `novpid`, `noapicv`, `noflex`, `nour`) or on
(`nxhp`); last the backing: `4k` (touched), `thp` (2 MB), `nopre` (4 KB, untouched), perhaps with a letter that tells
repeated runs apart. Where a file gives the module parameters, they decide and the name says the backing only.
"""

from __future__ import annotations

from typing import NamedTuple

from fastmmu import Config, MemorySlot

__all__ = ["Configuration", "configuration"]

APIC_PAGE = MemorySlot(0xFEE0_0000, 0x1000, private=True)
BACKINGS = {"4k": "4k", "thp": "2m", "nopre": "untouched"}
MODULES = ("eptY", "eptN", "tdpY", "tdpN", "shadow")
OFF = {"noad", "nopml", "novpid", "noapicv", "noflex", "notprshadow", "nour", "nxhp"}


class Configuration(NamedTuple):
    """A machine, and the slots that KVM adds of its own."""

    config: Config
    slots: tuple[MemorySlot, ...]
    apic: Config  # the same for a guest whose APIC is simulated


def configuration(
    name: str, vendor: str, parameters: dict[str, str] | None = None, emulator: str = ""
) -> Configuration:
    """The machine of a name; ValueError names the part that is unknown.

    emulator: what stood in for the processor. Bochs does not check updates of the guest's A and D flags against EPT W
    (ept.md §4), which shows where EPT has no A/D flags and the guest's tables are write-protected for a dirty log.
    """
    modules, *rest = name.split("_")
    backing = next((part for part in rest if part.rstrip("BC") in BACKINGS), None)
    unknown = [part for part in rest if part != backing and part not in OFF]
    if modules not in MODULES or backing is None or unknown:
        raise ValueError(f"configuration {name!r}: cannot tell what {unknown or modules} stands for")
    on = _parameters(modules, set(rest), vendor, parameters or {})
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
    return Configuration(config, (APIC_PAGE,) if on["apicv"] else (), apic)


def _parameters(modules: str, parts: set[str], vendor: str, given: dict[str, str]) -> dict[str, bool]:
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
        "eager_page_split": True,
        "mmio_caching": True,
    }
    intel = {"ept": "ept", "ad": "eptad", "pml": "pml", "vpid": "vpid", "apicv": "enable_apicv"}
    intel |= {"flexpriority": "flexpriority", "unrestricted": "unrestricted_guest"}
    common = ("tdp_mmu", "nx_huge_pages", "eager_page_split", "mmio_caching")
    for key, parameter in [(k, f"kvm_intel.{v}") for k, v in intel.items()] + [(k, f"kvm.{k}") for k in common]:
        if parameter in given:
            named[key] = given[parameter] in ("Y", "1")
    return named
