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
_MOST = 1 << 20  # bytes that are given together, of pages that are there


@dataclass
class Layout:
    """Pieces of physical memory: (address, bytes, place in the file, or :data:`ZERO` or :data:`FETCHED`).

    Where pieces overlap the first counts. ``cpus``: CR0, CR3, CR4 and EFER of each CPU, as far as the file has them;
    ``info``: what else it says of itself.
    """

    pieces: list[tuple[int, int, int]] = field(default_factory=list)
    fetch: Callable[[int], bytes | memoryview] | None = None
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
        fetch, data, file = self.fetch, source.data, source.file if source.filled is None else None
        if source.filled is not None:  # pages are made of what is unpacked then
            fetch = _Unpacked(starts, lengths, offsets, source, self.fetch).page
            offsets, data = np.where(offsets >= 0, FETCHED, offsets), memoryview(b"")
        try:
            return PhysicalMemory.from_segments(
                starts, lengths, offsets, data, file=file, fetch=fetch, writable=writable, most=most
            )
        except ConfigError as error:
            raise source.wrong(str(error)) from error


class _Unpacked:
    """Pages out of a file that is unpacked where it is looked at, and what `fetch` makes of the others."""

    def __init__(
        self,
        start: U64,
        length: U64,
        offset: npt.NDArray[np.int64],
        source: Source,
        fetch: Callable[[int], bytes | memoryview] | None,
    ) -> None:
        self.start, self.end = start.tolist(), (start + length).tolist()
        self.offset = offset.tolist()
        self.source, self.fetch = source, fetch
        self.there = 0, 0  # bytes of the file that need not be asked for

    def page(self, at: int) -> bytes | memoryview:
        i = bisect_right(self.end, at)
        if self.start[i] <= at and at + PAGE <= self.end[i] and self.offset[i] >= 0:
            place = self.offset[i] + at - self.start[i]
            low, high = self.there
            if not (low <= place and place + PAGE <= high):
                self.source.need(place, PAGE)
                if self.source.filled is not None:
                    self.there = low, high = self.source.filled.done_around(place)
            return self.source.data[place : place + max(PAGE, min(high - place, self.end[i] - at, _MOST))]
        made = bytearray(PAGE)
        while i < len(self.end) and self.start[i] < at + PAGE:
            first, behind = max(at, self.start[i]), min(at + PAGE, self.end[i])
            part: bytes | memoryview = bytes(behind - first)
            if self.offset[i] >= 0:
                part = self.source.bytes_at(self.offset[i] + first - self.start[i], behind - first)
            elif self.offset[i] == FETCHED and self.fetch is not None:
                part = self.fetch(at)[first - at : behind - at]
            made[first - at : behind - at] = part
            i += 1
        return bytes(made)


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
