"""Where in a file the physical addresses lie: what the readers of the formats give."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.errors import ConfigError
from fastmmu.image.source import Source
from fastmmu.paging.memory import FETCHED, ZERO, PhysicalMemory

__all__ = ["FETCHED", "ZERO", "Layout", "resolved"]

U64 = npt.NDArray[np.uint64]
TOP = 1 << 46
PAGE = 4096


@dataclass
class Layout:
    """Pieces of physical memory: (address, bytes, place in the file, or :data:`ZERO` or :data:`FETCHED`).

    Where pieces overlap the first counts. ``cpus``: CR0, CR3, CR4 and EFER of each CPU, as far as the file has them;
    ``info``: what else it says of itself.
    """

    pieces: list[tuple[int, int, int]] = field(default_factory=list)
    fetch: Callable[[int], bytes] | None = None
    cpus: list[dict[str, int]] = field(default_factory=list)
    info: dict[str, str] = field(default_factory=dict)

    def add(self, start: int, nbytes: int, offset: int) -> None:
        """A piece, unless it is empty."""
        if nbytes > 0:
            self.pieces.append((start, nbytes, offset))

    def memory(self, source: Source, *, writable: bool, most: int | None) -> PhysicalMemory:
        """The memory itself.

        :raises ConfigError: no pieces, or pieces that the file or the address space has no room for.
        """
        for start, nbytes, offset in self.pieces:
            if start + nbytes > TOP:
                raise source.wrong(f"{nbytes:#x} bytes at {start:#x} go beyond {TOP:#x}, more than any machine has")
            if offset >= 0 and offset + nbytes > source.size:
                raise source.wrong(
                    f"is cut short: physical memory at {start:x} lies at bytes {offset}..{offset + nbytes - 1} of it, "
                    f"and it has {source.size}; copy or dump it again"
                )
        if not self.pieces:
            raise source.wrong("holds no physical memory; dump all of it")
        starts, lengths, offsets = resolved(self.pieces)
        try:
            return PhysicalMemory.from_segments(
                starts, lengths, offsets, source.data, file=source.file, fetch=self.fetch, writable=writable, most=most
            )
        except ConfigError as error:
            raise source.wrong(str(error)) from error


def resolved(pieces: Sequence[tuple[int, int, int]]) -> tuple[U64, U64, npt.NDArray[np.int64]]:
    """Pieces in the order of their addresses and without overlap; of those that overlap the first counts."""
    start = np.array([piece[0] for piece in pieces], np.uint64)
    length = np.array([piece[1] for piece in pieces], np.uint64)
    offset = np.array([piece[2] for piece in pieces], np.int64)
    order = np.argsort(start, kind="stable")
    start, length, offset = start[order], length[order], offset[order]
    if not np.any(start[1:] < start[:-1] + length[:-1]):
        return start, length, offset
    found: list[tuple[int, int, int]] = []
    starts: list[int] = []  # of what has pieces already: disjoint, ascending, side by side merged
    ends: list[int] = []
    for at, nbytes, place in pieces:
        end = at + nbytes
        first = i = bisect_right(ends, at - 1)
        free = at
        while i < len(starts) and starts[i] <= end:
            if starts[i] > free:
                found.append((free, starts[i] - free, _place(place, free - at)))
            free = max(free, ends[i])
            i += 1
        if free < end:
            found.append((free, end - free, _place(place, free - at)))
        starts[first:i] = [min(at, *starts[first:i])] if first < i else [at]
        ends[first:i] = [max(end, *ends[first:i])] if first < i else [end]
    return resolved(sorted(found))


def _place(place: int, more: Any) -> int:
    return int(place + more) if place >= 0 else place
