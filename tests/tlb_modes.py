"""TLBs for tests, of kernel and specification, in each mode that they have."""

from __future__ import annotations

from fastmmu._tlb_py import TLB
from fastmmu.geometry import Geometry
from fastmmu.reference.invalidations import Tlb

__all__ = ["KINDS", "MODES", "AnyTlb", "make_tlb"]

AnyTlb = TLB | Tlb
KINDS: tuple[type[AnyTlb], ...] = (TLB, Tlb)
MODES = ("hardware",)  # a mode that keeps more must pass the same tests


def make_tlb(kind: type[AnyTlb], geometry: str | Geometry, mode: str = "hardware") -> AnyTlb:
    """A TLB of this mode."""
    assert mode in MODES
    return kind(geometry)
