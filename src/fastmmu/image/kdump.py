"""kdump-compressed files (makedumpfile, QEMU's and libvirt's kdump-*), also in the flattened form: page by page."""

from __future__ import annotations

import itertools
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from fastmmu.errors import ConfigError, MissingExtraError
from fastmmu.image.dmp import bits_of, runs_of
from fastmmu.image.layout import FETCHED, PAGE, TOP, ZERO, Layout, resolved
from fastmmu.image.notes import add_notes, add_vmcoreinfo
from fastmmu.image.source import Cache, Source
from fastmmu.trace.codecs import CorruptData, decompressor

__all__ = ["read", "read_flattened"]

_FLATTENED_HEAD = 4096
_DESCRIPTOR = struct.Struct("<QIIQ")  # offset, size, flags, page_flags
_ZERO_PAGES = 1  # of the dump level: pages of zeros are left out, nothing else is
_MOST_RANGES = 1 << 16
_PLAIN, _ZLIB, _LZO, _SNAPPY, _ZSTD = 0, 1, 2, 4, 0x20
_NAMES = {_ZLIB: "zlib", _LZO: "LZO", _SNAPPY: "snappy", _ZSTD: "zstd"}


def read(source: Source) -> Layout:
    """The pages that have a descriptor, each unpacked when it is asked for.

    Pages that the dump left out read as zero where pages of zeros were all that it left out (dump level 1); else they
    are not memory.
    """
    (version,) = source.fields("<i", 8)
    block, sub_blocks, bitmap_blocks, max_mapnr = source.fields("<iiII", 428)
    if block != PAGE:
        raise source.wrong(f"blocks of {block} bytes; those of x86 have {PAGE}")
    if not 1 <= sub_blocks <= 1 << 20 or bitmap_blocks % 2:
        raise source.wrong(f"{sub_blocks} blocks of the sub-header, {bitmap_blocks} of bitmaps: this is no kdump")
    layout = Layout()
    level, split, first, behind = source.fields("<IIQQ", block + 8)
    if version >= 6:
        first, behind, max_mapnr = source.fields("<QQQ", block + 80)
    for at, since, add in ((48, 4, add_notes), (32, 3, add_vmcoreinfo)):  # the registers of CPUs come first
        offset, size = source.fields("<QQ", block + at)
        if size and version >= since:
            add(layout, source.bytes_at(offset, size))
    half = bitmap_blocks // 2 * block
    if max_mapnr > 8 * half or max_mapnr > TOP // PAGE:
        raise source.wrong(f"{max_mapnr} pages, and bitmaps of {8 * half} bits")
    bitmaps = (1 + sub_blocks) * block
    there, given = source.bytes_at(bitmaps, half), source.bytes_at(bitmaps + half, half)
    part = (first, min(behind, max_mapnr)) if split else (0, max_mapnr)
    pages = bits_of(given, part[1], part[0])
    if bitmaps + 2 * half + pages * _DESCRIPTOR.size > source.size:
        raise source.wrong(f"is cut short: it has {source.size} bytes, and {pages} pages; copy or dump it again")
    runs = runs_of(given, part[1], part[0])
    for number, count in runs:
        layout.add(number * PAGE, count * PAGE, FETCHED)
    if level == _ZERO_PAGES and not split:
        ram = runs_of(there, max_mapnr)
        if len(ram) > _MOST_RANGES:
            raise source.wrong(f"its bitmap has memory in {len(ram)} ranges; no machine has so many")
        for number, count in ram:
            layout.add(number * PAGE, count * PAGE, ZERO)
    layout.info["dump level"] = str(level)
    layout.fetch = _Pages(source, runs, bitmaps + 2 * half).page
    return layout


class _Pages:
    """Pages by their descriptors, which lie in the order of the bits."""

    def __init__(self, source: Source, runs: list[tuple[int, int]], at: int) -> None:
        self.source = source
        self.descriptors = at
        self.first = [number for number, _ in runs]
        self.before = list(itertools.accumulate((count for _, count in runs), initial=0))  # descriptors in front
        self.blocks = Cache(self.unpack)

    def page(self, at: int) -> bytes:
        return self.blocks[at // PAGE]

    def unpack(self, number: int) -> bytes:
        run = bisect_right(self.first, number) - 1
        place = self.descriptors + _DESCRIPTOR.size * (self.before[run] + number - self.first[run])
        offset, size, flags, _ = _DESCRIPTOR.unpack(self.source.bytes_at(place, _DESCRIPTOR.size))
        if not 0 < size <= 2 * PAGE:
            raise self._wrong(number, f"its descriptor says {size} bytes at byte {offset}; the dump is incomplete")
        data = self.source.bytes_at(offset, size)
        if flags == _PLAIN:
            page = data
        elif flags in _UNPACK:
            try:
                page = _UNPACK[flags](data)
            except _Corrupt as error:
                raise self._wrong(number, f"cannot be unpacked ({_NAMES[flags]}): {error}") from error
        else:
            raise self._wrong(number, f"is packed in a way that is not known, flags {flags:#x}")
        if len(page) != PAGE:
            raise self._wrong(number, f"has {len(page)} bytes unpacked, not {PAGE}")
        return page

    def _wrong(self, number: int, what: str) -> ConfigError:
        return self.source.wrong(f"the page at physical address {number * PAGE:x} {what}")


class _Corrupt(Exception):
    pass


def _zlib(data: bytes) -> bytes:
    try:
        return zlib.decompress(data, zlib.MAX_WBITS, PAGE)  # of at most two pages, so 8 MB at most
    except zlib.error as error:
        raise _Corrupt(str(error)) from error


def _lzo(data: bytes) -> bytes:
    try:
        from lzallright import InputNotConsumed, LZOCompressor, LZOError
    except ImportError as error:
        raise MissingExtraError("a kdump packed with LZO", "images") from error
    try:
        return bytes(LZOCompressor.decompress(data, PAGE))
    except (LZOError, InputNotConsumed) as error:
        raise _Corrupt(str(error)) from error


def _snappy(data: bytes) -> bytes:
    try:
        from cramjam import DecompressionError, snappy
    except ImportError as error:
        raise MissingExtraError("a kdump packed with snappy", "images") from error
    page = bytearray(PAGE)
    try:
        n = snappy.decompress_raw_into(data, page)
    except DecompressionError as error:
        raise _Corrupt(str(error)) from error
    return bytes(page[:n])


def _zstd(data: bytes) -> bytes:
    stream = decompressor("zst")
    try:
        return stream.decompress(data, PAGE + 1)
    except CorruptData as error:
        raise _Corrupt(str(error)) from error


_UNPACK: dict[int, Callable[[bytes], bytes]] = {_ZLIB: _zlib, _LZO: _lzo, _SNAPPY: _snappy, _ZSTD: _zstd}


# ---- the flattened form ------------------------------------------------------------------------------------------


def read_flattened(source: Source) -> Layout:
    """A dump written to a pipe: records of (place, size) and bytes."""
    kind, version = struct.unpack(">qq", source.bytes_at(16, 16))
    if (kind, version) != (1, 1):
        raise source.wrong(f"a flattened dump of type {kind}, version {version}; 1 and 1 are known")
    rows: list[tuple[int, int, int]] = []
    at = _FLATTENED_HEAD
    while True:
        place, size = struct.unpack(">qq", source.bytes_at(at, 16))
        at += 16
        if place == -1:
            break
        if place < 0 or size <= 0 or place + size > TOP or at + size > source.size:
            raise source.wrong(
                f"the record at byte {at - 16} has {size} bytes for byte {place}; {source.size - at} bytes are left"
            )
        rows.append((place, size, at))
        at += size
    inner = _Records(source, rows)
    if inner.size < PAGE or inner.bytes_at(0, 8) != b"KDUMP   ":
        raise source.wrong("the flattened dump holds no kdump; put it together with makedumpfile -R")
    return read(inner)


class _Records(Source):
    """The file that records make, of which a later one counts; what none has is zero."""

    def __init__(self, source: Source, rows: list[tuple[int, int, int]]) -> None:
        self.name, self.source = source.name, source
        start, length, self.at = resolved(rows[::-1]) if rows else resolved([(0, 1, 0)])
        self.start, self.end = start.astype(np.int64), (start + length).astype(np.int64)
        self.size = int(self.end[-1])

    def bytes_at(self, offset: int, n: int) -> bytes:
        self.check(offset, n)
        if n > self.source.size:  # zeros, most of it
            raise self.wrong(f"{n} bytes at byte {offset} of the dump are more than its records hold")
        i = int(np.searchsorted(self.end, offset, "right"))
        if i < len(self.end) and self.start[i] <= offset and offset + n <= self.end[i]:
            return self.source.bytes_at(int(self.at[i]) + offset - int(self.start[i]), n)
        data = bytearray(n)
        while i < len(self.end) and self.start[i] < offset + n:
            first, behind = max(offset, int(self.start[i])), min(offset + n, int(self.end[i]))
            data[first - offset : behind - offset] = self.source.bytes_at(
                int(self.at[i]) + first - int(self.start[i]), behind - first
            )
            i += 1
        return bytes(data)
