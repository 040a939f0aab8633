"""Host physical memory for the executable specification: qwords at 8-byte aligned addresses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...errors import BusError

__all__ = ["ArrayMemory", "Memory", "Overlay", "SegmentedMemory", "SparseMemory", "holds"]


class Memory(Protocol):
    """What the walkers ask of memory. Addresses are multiples of 8; outside [0, nbytes) is a BusError.

    Memory with holes has ``ranges``, too: (start, end) of what of it there is.
    """

    @property
    def nbytes(self) -> int: ...

    def read64(self, hpa: int) -> int: ...

    def write64(self, hpa: int, value: int) -> None: ...


def _check(hpa: int, nbytes: int) -> None:
    if hpa % 8:
        raise BusError(f"physical address {hpa:#x} is not a multiple of 8")
    if not 0 <= hpa <= nbytes - 8:
        raise BusError(f"physical address {hpa:#x} lies outside memory of {nbytes:#x} bytes; enlarge the memory")


def holds(mem: Memory, hpa: int, n: int = 8) -> bool:
    """Whether the bytes hpa..hpa+n-1 are memory."""
    ranges: Iterable[tuple[int, int]] = getattr(mem, "ranges", ((0, mem.nbytes),))
    return any(start <= hpa and hpa + n <= end for start, end in ranges)


class SparseMemory:
    """Memory of `nbytes` in which every qword that was never written reads 0."""

    def __init__(self, qwords: Mapping[int, int] | Iterable[tuple[int, int]] = (), nbytes: int = 1 << 52) -> None:
        self.nbytes = nbytes
        self.qwords: dict[int, int] = {}
        for hpa, value in qwords.items() if isinstance(qwords, Mapping) else qwords:
            self.write64(hpa, value)

    def read64(self, hpa: int) -> int:
        _check(hpa, self.nbytes)
        return self.qwords.get(hpa, 0)

    def write64(self, hpa: int, value: int) -> None:
        _check(hpa, self.nbytes)
        self.qwords[hpa] = value


class ArrayMemory:
    """Memory over a one-dimensional uint64 array, not copied; address 0 is element 0."""

    def __init__(self, u64: npt.NDArray[np.uint64]) -> None:
        if u64.ndim != 1 or u64.dtype != np.dtype("<u8"):
            raise BusError(f"memory needs a 1-D uint64 array, got {u64.ndim}-D {u64.dtype}; use .view('<u8').ravel()")
        self.u64 = u64

    @property
    def nbytes(self) -> int:
        return 8 * len(self.u64)

    def read64(self, hpa: int) -> int:
        _check(hpa, self.nbytes)
        return int(self.u64[hpa >> 3])

    def write64(self, hpa: int, value: int) -> None:
        _check(hpa, self.nbytes)
        self.u64[hpa >> 3] = value


class Overlay:
    """Writes kept apart from the memory below, which `commit` carries down: a query simply never commits."""

    def __init__(self, below: Memory) -> None:
        self.below = below
        self.written: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        return self.below.nbytes

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        return getattr(self.below, "ranges", ((0, self.nbytes),))

    def read64(self, hpa: int) -> int:
        value = self.written.get(hpa)
        return self.below.read64(hpa) if value is None else value

    def write64(self, hpa: int, value: int) -> None:
        _check(hpa, self.nbytes)
        self.written[hpa] = value

    def commit(self) -> None:
        for hpa, value in self.written.items():
            self.below.write64(hpa, value)
        self.written.clear()


class SegmentedMemory:
    """Memory of which only some ranges are there: pieces side by side are one, and words of 8 bytes are whole or none.

    `pieces`: (start, end) in any order, which may overlap; `below` holds the words.
    """

    def __init__(self, below: Memory, pieces: Sequence[tuple[int, int]]) -> None:
        merged: list[list[int]] = []
        for start, end in sorted(pieces):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        words = [((start + 7) // 8 * 8, end // 8 * 8) for start, end in merged]
        self.below = below
        self.ranges = tuple((start, end) for start, end in words if start < end)

    @property
    def nbytes(self) -> int:
        return max((end for _, end in self.ranges), default=0)

    def read64(self, hpa: int) -> int:
        if not holds(self, hpa):
            raise BusError(f"physical address {hpa:#x} lies in a hole")
        return self.below.read64(hpa)

    def write64(self, hpa: int, value: int) -> None:
        if not holds(self, hpa):
            raise BusError(f"physical address {hpa:#x} lies in a hole")
        self.below.write64(hpa, value)
