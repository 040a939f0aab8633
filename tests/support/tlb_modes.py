"""TLBs for tests, of kernel and specification, in each mode that they have."""

from __future__ import annotations

import msgspec

from fastmmu.reference.tlb.invalidations import Tlb
from fastmmu.tlb.geometry import Geometry
from fastmmu.tlb.geometry import geometry as _geometry
from fastmmu.tlb.tlb import TLB

__all__ = ["KINDS", "MODES", "AnyTlb", "make_tlb"]

AnyTlb = TLB | Tlb
KINDS: tuple[type[AnyTlb], ...] = (TLB, Tlb)
MODES = ("hardware", "strict")  # strict keeps all that it may: what dies and what survives is the same


def make_tlb(kind: type[AnyTlb], geometry: str | Geometry, mode: str = "hardware") -> AnyTlb:
    """A TLB of this mode: with the arrays of the geometry, or with arrays that grow instead of evicting."""
    assert mode in MODES
    return kind(msgspec.structs.replace(_geometry(geometry), unbounded=mode == "strict"))
