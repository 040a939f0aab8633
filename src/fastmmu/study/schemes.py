"""The named configurations of the studies: name → the fields of :class:`Config` that make it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmmu.errors import ConfigError
from fastmmu.kvm_versions import TODAY

__all__ = [
    "BOOT", "COMPARE", "KVM_LOG", "MIGRATE", "OVERCOMMIT", "RECLAIM", "REPLAY", "SHOOTDOWN", "TPR", "USUAL", "Schemes",
    "fields_of",
]  # fmt: skip

Schemes = Mapping[str, Mapping[str, Any]]

NATIVE = {"mmu": "native"}
SHADOW = {"mmu": "shadow"}
EPT = {"mmu": "ept"}
AGILE = {"mmu": "agile"}
VPID = {"vpid": True}
LINUX = {"kvm": TODAY}
SLIDES = {"kvm": "slides"}
SHADOW_NOW = {**SHADOW, **VPID, **LINUX}
EPT_NOW = {**EPT, **VPID, **LINUX}
AGILE_NOW = {**AGILE, **VPID, **LINUX}
NO_AD = {"ept_ad": False}

COMPARE: Schemes = {
    "native": NATIVE,
    "shadow": SHADOW,
    "shadow+vpid": {**SHADOW, **VPID},
    "ept": EPT,
    "ept+vpid": {**EPT, **VPID},
    "agile": AGILE,
    "agile+vpid": {**AGILE, **VPID},
}
USUAL = ("native", "shadow", "shadow+vpid", "ept", "ept+vpid")
"""What `fastmmu compare` runs unless it is told."""

REPLAY: Schemes = {
    "native": NATIVE,
    "shadow, always in sync": {**SHADOW, **VPID, **SLIDES, "shadow_keys": True},
    "shadow, Linux 6.1": {**SHADOW_NOW, "shadow_keys": True},
    "EPT, older MMU": {**EPT_NOW, "tdp_mmu": False},
    "EPT": EPT_NOW,
    "EPT, no A/D flags": {**EPT_NOW, **NO_AD},
    "agile": {**AGILE_NOW, "shadow_keys": True},
    "agile, begun nested": {**AGILE_NOW, "shadow_keys": True, "agile": "interval=512 begin=nested"},
    "EPT, no VPID": {**EPT, **LINUX},
    "EPT, 2 MB pages": {**EPT_NOW, "host_pages": "2m"},
    "EPT, logged": EPT_NOW,
    "EPT, logged by PML": {**EPT_NOW, "pml": True},
    "EPT, logged in rings": EPT_NOW,
    "shadow, logged": {**SHADOW_NOW, "shadow_keys": True},
}
"""Of those logged the dirty log is read: by write protection, by PML, in a ring of each vCPU."""

BOOT: Schemes = {
    "native": NATIVE,
    "shadow": SHADOW,
    "shadow-6.1": {**SHADOW, **LINUX},
    "ept": {**EPT, "unrestricted_guest": False},
    "ept-6.1": {**EPT, **LINUX, "unrestricted_guest": False},
    "unrestricted": {**EPT, **LINUX, "unrestricted_guest": True},
}
"""ept, ept-6.1: without unrestricted guest, by the KVM of the slides and 6.1; another version makes another scheme of
those whose name has none."""

MIGRATE: Schemes = {
    "write-protect": EPT_NOW,
    "pml": {**EPT_NOW, "pml": True},
    "ring": EPT_NOW,
    "shadow": SHADOW_NOW,
}
"""By method of logging. ring: a dirty ring filled by write protection."""

OVERCOMMIT: Schemes = {
    "shadow": SHADOW_NOW,
    "ept": EPT_NOW,
    "ept-tracked": {**EPT_NOW, **NO_AD, "ageing": "track"},
    "ept-zapped": {**EPT_NOW, **NO_AD, "ageing": "zap"},
}
"""Without A flags in the EPT the host learns of a use by the fault of an entry whose rights were set aside (tracked),
or that was taken away (zapped)."""

RECLAIM = ("clock", "lru")
"""By which a host short of memory chooses the pages that go to disk: values of ``Config.host_reclaim``."""

KVM_LOG: Schemes = {
    "4k": EPT_NOW,
    "4k-older": {**EPT_NOW, "tdp_mmu": False},
    "2m": {**EPT_NOW, "host_pages": "2m"},
    "2m-nx": {**EPT_NOW, "host_pages": "2m", "nx_huge_pages": True},
    "4k-log": EPT_NOW,
    "4k-pml": {**EPT_NOW, "pml": True},
    "4k-ring": EPT_NOW,
    "2m-log-late": {**EPT_NOW, "host_pages": "2m", "eager_page_split": False},
    "2m-log": {**EPT_NOW, "host_pages": "2m"},
    "2m-pml": {**EPT_NOW, "host_pages": "2m", "pml": True},
}
"""By backing of the host, MMU (TDP or older), and how writes are logged, if they are: by write protection (log), PML,
or into a dirty ring. Huge pages are split as logging begins, or late, by the write that needs it."""

TPR: Schemes = {
    "native": {**NATIVE, "tpr": "trap"},
    "trap": {"tpr": "trap"},
    "patch": {"tpr": "patch"},
    "flexpriority": {"tpr": "flexpriority"},
    "flexpriority-slides": {"tpr": "flexpriority", "tpr_threshold": "slides"},
    "apicv": {"tpr": "apicv"},
}
"""By way of handling the TPR; all but native under the VMM of the study."""


SHOOTDOWN: Schemes = {
    "native": NATIVE,
    "trap": {**EPT_NOW, "tpr": "trap"},
    "flexpriority": {**EPT_NOW, "tpr": "flexpriority", "apic_access_page": True},
    "apicv": {**EPT_NOW, "tpr": "apicv"},
    "pv": {**EPT_NOW, "tpr": "apicv", "shootdown": "pv"},
    "invlpgb": {**EPT, **LINUX, "vendor": "amd", "shootdown": "invlpgb"},
}
"""How vCPUs tell each other to flush: interrupts by way of handling the local APIC, KVM's PV flush beside APICv, AMD's
broadcast. FlexPriority with the APIC-access page, as KVM had it before Linux 5.16."""


def fields_of(name: str, schemes: Schemes, what: str = "scheme", kvm: str | None = None) -> dict[str, Any]:
    """The fields of a named configuration. `kvm`: the version for those of today's KVM, None: 6.1.

    :raises ConfigError: there is none of that name; `what` says what it would be the name of.
    """
    if name not in schemes:
        raise ConfigError(f"no {what} {name!r}; there are {', '.join(schemes)}")
    found = dict(schemes[name])
    return found | {"kvm": kvm} if kvm is not None and found.get("kvm") == LINUX["kvm"] else found
