"""Misses of TLBs of every size, from one pass: `curve_kernel` (`curve_kernel_py`) over lists of `stack_distance`;
`parts`: of a trace in parts, in threads or on an executor."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.curve.run import Curve, Curves, tlb_curve

__all__ = ["Curve", "Curves", "tlb_curve"]

COMMAND, HELP, PLACE = "tlb-curve", "TLB misses at every size, from one pass", 8

_HOMES = {"fastmmu.study.curve.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
