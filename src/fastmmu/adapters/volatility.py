"""volatility3: its 64-bit Intel layers enumerate mappings by fastmmu.

    python -m fastmmu.adapters.volatility -f IMAGE PLUGIN ...    vol, with the layers taken over
    fastmmu.adapters.volatility.install()                        in a program that imports volatility3

Only `mapping` of many bytes is taken over, which scans and dumps of address spaces go through; what it yields stays as
it is. volatility3 has rules of its own: tables that are one entry over and over count as none, reserved bits as
nothing, and its layers for Linux and Windows take some entries for valid that are not present. Where such an entry
stands, its own code goes on with the addresses that it covers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastmmu.errors import MissingExtraError, OutOfMemoryError
from fastmmu.paging.mappings import mappings
from fastmmu.paging.memory import FETCHED, PhysicalMemory
from fastmmu.paging.state import GuestState

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["install", "main", "uninstall"]

U64 = npt.NDArray[np.uint64]
Run = tuple[int, int, int, int, str]

_LEAST = 1 << 20  # bytes asked for: below, looking at all tables first does not pay
_MOST_TABLES = 1 << 20
_MOST_PAGES = 1 << 23
_BITS = 48
_FRAME = np.uint64(0xF_FFFF_FFFF_F000)
_PRESENT, _LARGE, _PAT = np.uint64(1), np.uint64(0x80), np.uint64(0x1000)


def _intel() -> ModuleType:
    try:
        from volatility3.framework.layers import intel
    except ImportError as error:
        raise MissingExtraError("the layers of volatility3", "volatility") from error
    module: ModuleType = intel
    return module


def install() -> None:
    """Take over `mapping` of volatility3's 64-bit Intel layers: Intel32e, LinuxIntel32e, WindowsIntel32e.

    :raises MissingExtraError: volatility3 is not installed.
    """
    intel = _intel()
    plain = intel.Intel._mapping

    def _mapping(layer: Any, offset: int, length: int, ignore_errors: bool = False) -> Iterator[Run]:
        ours = ignore_errors and length >= _LEAST and 0 <= offset <= (1 << _BITS) - length
        known = _spaces(layer) if ours else None  # behind the end volatility3 begins anew
        if known is None:
            yield from plain(layer, offset, length, ignore_errors)
        else:
            yield from known.runs(layer, plain, offset, length)

    intel.Intel32e._mapping = _mapping


def uninstall() -> None:
    """Give it back.

    :raises MissingExtraError: volatility3 is not installed.
    """
    intel = _intel()
    if "_mapping" in vars(intel.Intel32e):
        del intel.Intel32e._mapping


def main(arguments: list[str] | None = None) -> int:
    """`vol` with the layers taken over.

    :raises MissingExtraError: volatility3 is not installed.
    """
    install()
    from volatility3 import cli

    if arguments is not None:
        sys.argv[1:] = arguments
    cli.main()
    return 0


def _spaces(layer: Any) -> _Space | None:
    """What is known of a layer; None: it is for volatility3 alone."""
    if layer.config.get("swap_layers", False) or layer._maxvirtaddr != _BITS:
        return None
    if "_fastmmu" not in vars(layer):
        try:
            layer._fastmmu = _Space(layer)
        except OutOfMemoryError:
            layer._fastmmu = None
    found: _Space | None = layer._fastmmu
    return found


class _Space:
    """The pages of a layer, and the ranges of addresses where its rules are not those of the processor."""

    def __init__(self, layer: Any) -> None:
        self.base = layer._context.layers[layer._base_layer]
        self.name: str = layer._base_layer
        root = layer._page_map_offset & int(_FRAME)
        self.odd = _odd(layer, root)
        nbytes = min(self.base.maximum_address + 1, 1 << 46) + 4095 & ~4095
        memory = PhysicalMemory.from_segments(
            np.zeros(1, np.uint64), np.array([nbytes], np.uint64), [FETCHED], fetch=self._fetch
        )
        rows = mappings(memory, GuestState(cr3=root), limit=_MOST_PAGES)
        if rows.truncated:
            raise OutOfMemoryError("more pages than are held")
        va = rows.va & np.uint64((1 << _BITS) - 1)  # volatility3 has addresses of 48 bits
        keep = np.ones(len(rows), bool)
        for start, end in self.odd:
            keep[np.searchsorted(va, start) : np.searchsorted(va, end)] = False
        self.va, self.pa, self.length = va[keep], rows.pa[keep], rows["size"][keep]

    def _fetch(self, at: int) -> bytes:
        data: bytes = self.base.read(at, 4096, pad=True)
        return data

    def runs(self, layer: Any, plain: Any, offset: int, length: int) -> Iterator[Run]:
        """Of `length` bytes from an address on, in the order of addresses."""
        end = offset + length
        at = offset
        for start, stop in self.odd:
            if stop <= at or start >= end:
                continue
            yield from self._pages(at, start)
            first = max(at, start)
            yield from plain(layer, first, min(stop, end) - first, True)
            at = stop
        if at < end:
            yield from self._pages(at, end)

    def _pages(self, start: int, end: int) -> Iterator[Run]:
        if start >= end:
            return
        first = int(np.searchsorted(self.va + self.length, start, side="right"))
        last = int(np.searchsorted(self.va, min(end, (1 << 64) - 1)))
        va, pa, length = self.va[first:last], self.pa[first:last], self.length[first:last]
        if not len(va):
            return
        new = (va[1:] != va[:-1] + length[:-1]) | (pa[1:] != pa[:-1] + length[:-1])
        begin = np.concatenate([[0], np.flatnonzero(new) + 1])
        for i, n in zip(begin.tolist(), np.diff(np.append(begin, len(va))).tolist(), strict=True):
            at, place = int(va[i]), int(pa[i])
            behind = int(va[i + n - 1]) + int(length[i + n - 1])
            cut, behind = max(at, start), min(behind, end)
            if self.base.is_valid(place + cut - at, behind - cut):
                yield cut, behind - cut, place + cut - at, behind - cut, self.name
                continue
            for k in range(i, i + n):  # some of it is not in the image
                page, place = int(va[k]), int(pa[k])
                cut, till = max(page, start), min(page + int(length[k]), end)
                if self.base.is_valid(place + cut - page, till - cut):
                    yield cut, till - cut, place + cut - page, till - cut, self.name


def _odd(layer: Any, root: int) -> list[tuple[int, int]]:
    """Ranges of addresses that volatility3 sees by rules of its own; sorted, those side by side as one.

    :raises OutOfMemoryError: more tables than are looked at.
    """
    known: dict[tuple[int, int], tuple[list[int], list[tuple[int, int]]]] = {}
    found: list[tuple[int, int]] = []
    left = [(4, root, 0)]
    tables = 0
    while left:
        level, table, base = left.pop()
        tables += 1
        if tables > _MOST_TABLES:
            raise OutOfMemoryError("more tables than are looked at")
        shift = 12 + 9 * (level - 1)
        if (level, table) not in known:
            known[level, table] = _entries(layer, level, table)
        odd, below = known[level, table]
        found += [(base + (i << shift), base + (i + 1 << shift)) for i in odd]
        left += [(level - 1, address, base + (i << shift)) for i, address in below]
    merged: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if merged and merged[-1][1] == start:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((start, end))
    return merged


def _entries(layer: Any, level: int, table: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Of a table: entries that are volatility3's own matter, and the tables that the others lead to."""
    data = layer._get_valid_table(table)
    if data is None:  # not in the image, or one entry over and over
        return list(range(512)), []
    words: U64 = np.frombuffer(data, "<u8").astype(np.uint64)
    present = (words & _PRESENT) != 0
    odd = present & (words & _FRAME & ~np.uint64((1 << layer._maxphyaddr) - 1) != 0)
    absent = ~present & (words != 0)
    valid = [word for word in np.unique(words[absent]).tolist() if layer._page_is_valid(word)]
    odd |= np.isin(words, np.array(valid, np.uint64))
    large = present & (words & _LARGE != 0) & (level > 1)
    if level == 4:
        odd |= large
    elif level > 1:
        low = np.uint64((1 << 12 + 9 * (level - 1)) - 1) & _FRAME & ~_PAT
        odd |= large & (words & low != 0)
    if level == 1:
        return np.flatnonzero(odd).tolist(), []
    below = np.flatnonzero(present & ~odd & ~large)
    return np.flatnonzero(odd).tolist(), list(zip(below.tolist(), (words[below] & _FRAME).tolist(), strict=True))


if __name__ == "__main__":
    sys.exit(main())
