"""Where the blocks of a packed file are: those that can be unpacked without what stands before them.

    xz              blocks, by the index of each stream (`xz -T0`, pixz; without -T one)
    zstd            frames whose header says how long they are unpacked (`zstd FILE`: one; pzstd and others: many)
    gzip            members of bgzip's form, which say how long they are packed
    snappy frames   chunks, some together

Of all others the length unpacked is known at their end alone. The formats: tukaani.org/xz/xz-file-format.txt, RFC 8878,
RFC 1952 and the SAM specification §4.1, snappy's framing_format.txt.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, TypeAlias, overload

__all__ = ["Blocks", "Data", "FileBytes", "Slice", "blocks_of"]


class FileBytes:
    """The bytes of a file, read where they are asked for; mapped, all of them would count as memory of the process."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, where: int) -> int: ...
    @overload
    def __getitem__(self, where: slice) -> bytes: ...
    def __getitem__(self, where: int | slice) -> int | bytes:
        if isinstance(where, int):
            return os.pread(self._file.fileno(), 1, where)[0]
        start, stop, _ = where.indices(self._size)
        return os.pread(self._file.fileno(), max(0, stop - start), start)


_MOST = 1 << 20
"""Blocks, chunks or members that are looked for: a file of more is unpacked as a whole, which no Python slows down."""

Data: TypeAlias = memoryview | FileBytes


class Slice(NamedTuple):
    """A block: `start` and `length` in the packed file, `out` bytes unpacked, `head` to be put in front."""

    start: int
    length: int
    out: int
    head: bytes


@dataclass
class Blocks:
    """Blocks in the order of the file: place and bytes packed, bytes unpacked before each; ``size``: of all."""

    codec: str
    start: array[int] = field(default_factory=lambda: array("Q"))
    length: array[int] = field(default_factory=lambda: array("Q"))
    at: array[int] = field(default_factory=lambda: array("Q"))
    size: int = 0
    heads: list[tuple[int, bytes]] = field(default_factory=list)  # from this block on

    def add(self, start: int, length: int, out: int) -> None:
        """A block behind the others."""
        self.start.append(start)
        self.length.append(length)
        self.at.append(self.size)
        self.size += out

    def gather(self, first: int, at: int, end: int, out: int) -> tuple[int, int]:
        """What was found since `first`, `out` bytes unpacked, becomes a block where it is large enough or the file, of
        `end` bytes, ends; the next `first` and `out`."""
        if out < _TOGETHER and at < end:
            return first, out
        if at > end:
            raise ValueError("cut short")
        if out:
            self.add(first, at - first, out)
        return at, 0

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, number: int) -> Slice:
        end = self.at[number + 1] if number + 1 < len(self) else self.size
        head = next((head for first, head in reversed(self.heads) if first <= number), b"")
        return Slice(self.start[number], self.length[number], end - self.at[number], head)


def blocks_of(data: Data, codec: str) -> Blocks | None:
    """The blocks of a packed file; None where it has none of which lengths are known, or is damaged."""
    find = _FIND.get(codec)
    try:
        found = find(data) if find else None
    except (ValueError, IndexError, OverflowError):
        return None
    return found if found is not None and len(found) and 0 < found.size < 1 << 46 else None


def _number(data: Data, at: int, n: int) -> int:
    if at < 0 or at + n > len(data):
        raise ValueError("the data ends early")
    return int.from_bytes(data[at : at + n], "little")


# ---- xz --------------------------------------------------------------------------------------------------------------

_XZ_CHUNK = 1 << 21  # bytes that a chunk of LZMA2 makes at most; it takes 6 at least


def _xz(data: Data) -> Blocks:
    found: list[tuple[bytes, list[tuple[int, int, int]]]] = []
    end = len(data)
    while end:
        while end >= 4 and not any(data[end - 4 : end]):  # padding between streams
            end -= 4
        if bytes(data[end - 2 : end]) != b"YZ" or end < 32:
            raise ValueError("no footer")
        index = end - 12 - 4 * (_number(data, end - 8, 4) + 1)
        records = _xz_index(data, index, end - 12)
        at = index - sum((packed + 3) & ~3 for packed, _ in records)
        end = at - 12
        if end < 0 or bytes(data[end : end + 6]) != b"\xfd7zXZ\0":
            raise ValueError("no header")
        rows = []
        for packed, out in records:
            rows.append((at, (packed + 3) & ~3, out))
            at += (packed + 3) & ~3
        found.append((bytes(data[end : end + 12]), rows))
    blocks = Blocks("xz")
    for head, rows in reversed(found):
        blocks.heads.append((len(blocks), head))
        for at, packed, out in rows:
            if out > packed // 6 * _XZ_CHUNK:
                raise ValueError("more than so many bytes hold")
            if out:
                blocks.add(at, packed, out)
    return blocks


def _xz_index(data: Data, at: int, end: int) -> list[tuple[int, int]]:
    if not 0 <= at < end or data[at] or zlib.crc32(data[at : end - 4]) != _number(data, end - 4, 4):
        raise ValueError("no index")
    at += 1
    count, at = _vli(data, at)
    if count > _MOST:
        raise ValueError("too many blocks")
    records = []
    for _ in range(count):
        packed, at = _vli(data, at)
        out, at = _vli(data, at)
        records.append((packed, out))
    return records


def _vli(data: Data, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 56:
            raise ValueError("no number")


# ---- zstd ------------------------------------------------------------------------------------------------------------

_ZSTD_BLOCK = 1 << 17  # bytes that a block makes at most
_RLE = 1


def _zstd(data: Data) -> Blocks | None:
    blocks, at, size, seen = Blocks("zst"), 0, len(data), 0
    while at < size:
        magic = _number(data, at, 4)
        seen += 1
        if seen > _MOST:
            return None
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # to be skipped
            at += 8 + _number(data, at + 4, 4)
            continue
        if magic != 0xFD2FB528:
            raise ValueError("no frame")
        start, flags = at, _number(data, at + 4, 1)
        single, form = flags >> 5 & 1, flags >> 6
        at += 5 + (not single) + (0, 1, 2, 4)[flags & 3]
        width = (single, 2, 4, 8)[form]
        if not width:
            return None
        out = _number(data, at, width) + (256 if width == 2 else 0)
        at += width
        n = last = 0
        while not last:
            head = _number(data, at, 3)
            last, n, seen = head & 1, n + 1, seen + 1
            if seen > _MOST or not (head >> 1 or last):
                raise ValueError("too many blocks, or one of nothing")
            at += 3 + (1 if head >> 1 & 3 == _RLE else head >> 3)
        at += 4 * (flags >> 2 & 1)
        if at > size or out > n * _ZSTD_BLOCK:
            raise ValueError("cut short, or more than so many blocks hold")
        if out:
            blocks.add(start, at - start, out)
    return blocks


# ---- gzip ------------------------------------------------------------------------------------------------------------

_BGZF_BLOCK = 1 << 16
_TOGETHER = 1 << 20  # bytes unpacked: small members and chunks make one block


def _gz(data: Data) -> Blocks | None:
    blocks, at, size = Blocks("gz"), 0, len(data)
    first = out = seen = 0
    while at < size:
        seen += 1
        if seen > _MOST:
            return None
        if bytes(data[at : at + 4]) != b"\x1f\x8b\x08\x04" or bytes(data[at + 12 : at + 16]) != b"BC\x02\0":
            return None
        at += _number(data, at + 16, 2) + 1
        n = _number(data, at - 4, 4)
        if n > _BGZF_BLOCK:
            raise ValueError("more than a member holds")
        out += n
        first, out = blocks.gather(first, at, size, out)
    return blocks


# ---- snappy frames ---------------------------------------------------------------------------------------------------

_SNAPPY_HEAD = b"\xff\x06\0\0sNaPpY"
_SNAPPY_CHUNK = 1 << 16


def _sz(data: Data) -> Blocks:
    blocks, at, size = Blocks("sz"), 0, len(data)
    blocks.heads.append((0, _SNAPPY_HEAD))
    first = out = seen = 0
    while at < size:
        seen += 1
        if seen > _MOST:
            raise ValueError("too many chunks")
        kind, length = data[at], _number(data, at + 1, 3)
        if kind <= 1:
            n = length - 4 if kind else _vli(data, at + 8)[0]
            if not 0 < n <= _SNAPPY_CHUNK:
                raise ValueError("more than a chunk holds")
            out += n
        elif kind < 0x80:
            raise ValueError("a chunk of no type")
        at += 4 + length
        first, out = blocks.gather(first, at, size, out)
    return blocks


_FIND: dict[str, Callable[[Data], Blocks | None]] = {"xz": _xz, "zst": _zstd, "gz": _gz, "sz": _sz}
