"""NumPy dtypes and codes in which results leave the kernels."""

from __future__ import annotations

import enum

import numpy as np

__all__ = ["ALL_ONES", "STEP_DTYPE", "Fault", "StepKind"]

ALL_ONES = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
"""`.pa` where an address did not translate."""


class Fault(enum.IntEnum):
    """Why an address did not translate; 0 = it did."""

    NONE = 0
    PAGE_FAULT = 1
    GENERAL_PROTECTION = 2
    EPT_VIOLATION = 3
    EPT_MISCONFIG = 4
    BUS = 5
    PML_FULL = 6
    SPP_EVENT = 7


class StepKind(enum.IntEnum):
    """What one memory reference of a walk was for."""

    GUEST = 0
    EPT = 1
    GUEST_AD = 2
    EPT_AD = 3
    DATA = 4
    SPP = 5


STEP_DTYPE = np.dtype(
    [
        ("hpa", "<u8"),
        ("gpa", "<u8"),
        ("entry", "<u8"),
        ("kind", "u1"),
        ("level", "u1"),
        ("guest_level", "u1"),
        ("pad", "u1"),
    ],
    align=True,
)
"""One reference of a walk; the C struct `Step` of `_types.pxd`."""
