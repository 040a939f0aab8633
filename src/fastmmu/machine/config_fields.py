"""The fields of a `Config` with what each may be, and the words for what it may not."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from fastmmu.cache import caches
from fastmmu.cache.frame_map import host_frame_plan
from fastmmu.errors import ConfigError
from fastmmu.machine.agile_policy import AgilePolicy, agile_policy
from fastmmu.machine.frame_plan import frame_plan
from fastmmu.machine.thp_plan import thp_plan
from fastmmu.machine.topology import topology
from fastmmu.sizes import page_size, parse_bytes
from fastmmu.tlb.geometry import Geometry, geometry

__all__ = ["Fields", "refused_alone", "refused_of"]


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mmu: Literal["native", "shadow", "ept", "agile"] = "native"
    agile: str | None = None
    vpid: bool = False
    pages: Literal["4k", "2m", "thp"] = "4k"
    host_pages: Literal["4k", "2m", "untouched"] | None = None
    kvm: Literal["slides", "5.10", "6.1", "6.12"] = "slides"
    vendor: Literal["intel", "amd"] = "intel"
    asids: Annotated[int, msgspec.Meta(ge=2, le=1 << 16)] = 32768
    sev_asids: Annotated[int, msgspec.Meta(ge=0, le=(1 << 16) - 2)] = 0
    flush_by_asid: bool = True
    unsync: bool | None = None
    ept_ad: bool = True
    pml: bool = False
    tdp_mmu: bool = True
    eager_page_split: bool = True
    nx_huge_pages: bool = False
    mmio_caching: bool = True
    shadow_keys: bool = False
    guest_ad_checked: bool = True
    unrestricted_guest: bool | None = None
    identity_map: int = 0xFFFB_C000
    host_memory: int | str | None = None
    host_reclaim: Literal["clock", "lru"] = "clock"
    ageing: Literal["track", "zap", "old"] | None = None
    noncoherent_dma: bool = False
    cd_quirk: bool = True
    table_pages: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0
    premapped: bool = False
    vmm: Any = "kernel"
    tlb: str | Geometry = "skylake"
    l1d: str | None = None
    l1i: str | None = None
    stlb: str | None = None
    replacement: str | None = None
    psc: str | None = None
    epsc: str | None = None
    gpm: str | None = None
    walk_caches: bool = True
    caches: Any = None
    topology: str | None = None
    shared: str | None = None
    tlb_extension: str | None = None
    find_missing_flushes: bool = False
    pcid: bool = False
    memory: int | str = "64G"
    kernel_memory: Literal["low", "high"] = "low"
    frames: str = "first-touch"
    host_frames: str = "linear"
    host_thp: Literal["always", "never"] | None = None
    exit_every: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    exit_pages: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    exit_log: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0
    tpr: Literal["trap", "patch", "flexpriority", "apicv"] | None = None
    tpr_shadow: bool = True
    apic_access_page: bool | None = None
    tpr_threshold: Literal["kvm", "slides"] = "kvm"
    tpr_patch: Literal["per-vcpu", "one-vcpu"] = "per-vcpu"
    guest_handler: Literal["eoi", "irql"] = "eoi"
    handler_length: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0
    apic_id: Annotated[int, msgspec.Meta(ge=0, le=15)] = 0
    thp: str | None = None
    defrag: Literal["never", "madvise", "defer", "always"] = "never"
    unmovable: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    thp_threshold: Annotated[int, msgspec.Meta(ge=1, le=512)] = 64
    shootdown: Literal["ipi", "pv", "invlpgb"] = "ipi"
    lazy_tlb: bool = True
    flush_ceiling: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 33

    @property
    def agile_policy(self) -> AgilePolicy:
        """When agile paging moves a table of the guest's to nested mode, and back."""
        return agile_policy(self.agile)

    @property
    def shadows(self) -> bool:
        """Whether the VMM has shadow tables: shadow paging, agile paging."""
        return self.mmu in ("shadow", "agile")


_ARRAYS = ("tlb", "l1d", "l1i", "stlb", "replacement", "psc", "epsc", "gpm", "walk_caches", "shared", "tlb_extension")


def refused_alone(name: str, value: Any) -> str | None:
    """Why no configuration takes this value of a field, whatever its others are: what it may be; None: some may."""
    if name in ("pages", "host_pages") and isinstance(value, str):
        value = page_size(value)
    try:
        found = msgspec.convert({name: value}, Fields)
        if name in _ARRAYS:
            geometry(found.tlb, **{} if name == "tlb" else {name.removeprefix("tlb_"): value})
        elif name == "frames":
            frame_plan(value)
        elif name == "host_frames":
            host_frame_plan(value)
        elif name == "thp" and value is not None:
            thp_plan(value)
        elif name == "topology" and value is not None:
            topology(value)
        elif name == "caches":
            caches(value)
        elif name == "agile":
            agile_policy(value)
        elif name in ("memory", "host_memory") and value is not None:
            parse_bytes(value)
    except msgspec.ValidationError as error:
        return _refused(name, value, error)
    except ConfigError as error:
        return str(error)
    return None


def refused_of(fields: Fields, error: msgspec.ValidationError) -> str:
    """Name and value of the field of which an error of msgspec tells, and what it may be."""
    name = re.search(r"`\$\.(\w+)`", str(error))
    if name is None:
        return str(error)
    return f"{name[1]}={getattr(fields, name[1])!r}: {_refused(name[1], getattr(fields, name[1]), error)}"


def _refused(name: str, value: Any, error: msgspec.ValidationError) -> str:
    hint = get_type_hints(Fields)[name]
    choices = [repr(word) for part in (hint, *get_args(hint)) if get_origin(part) is Literal for word in get_args(part)]
    said = f"choose from {', '.join(choices)}" if choices else str(error).partition(" - at")[0]
    return "give the name of a preset, or a fastmmu.Geometry" if name == "tlb" else said
