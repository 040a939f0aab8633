"""The bytes of a file, as they are or unpacked: what the readers of the formats read."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

from fastmmu.errors import ConfigError
from fastmmu.image.raw import open_regular
from fastmmu.trace.codecs import CorruptData, EndsEarly, codec_of_bytes, unpacked

__all__ = ["Blocks", "Source", "inflated_lime", "open_source", "temporary"]

PIECE = 1 << 18
_ZEROS = bytes(PIECE)
_CODECS = ("gz", "xz", "zst", "bz2", "lz4", "sz", "zlib")
_PACKED = 3  # times that a file may be packed, one in the other
CACHED = 1 << 26
"""Bytes of unpacked blocks that are kept, of a file whose format is compressed inside."""


class Source:
    """An open file, mapped. ``data`` is all of it; it is never written to."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file = file
        self.name = name
        self.size = os.fstat(file.fileno()).st_size
        if self.size == 0:
            raise ConfigError(f"{name}: holds 0 bytes; give an image of physical memory")
        self.data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def bytes_at(self, offset: int, n: int) -> bytes:
        """`n` bytes; raises ConfigError where the file ends before."""
        if offset < 0 or n < 0 or offset + n > self.size:
            raise ConfigError(
                f"{self.name}: is cut short: {n} bytes at byte {offset} are part of it, and it has {self.size}; "
                "copy or dump it again"
            )
        return bytes(self.data[offset : offset + n])

    def fields(self, layout: str, offset: int) -> tuple[Any, ...]:
        """The values of a struct at a byte of the file."""
        return struct.unpack(layout, self.bytes_at(offset, struct.calcsize(layout)))

    def wrong(self, what: str) -> ConfigError:
        """An error to raise: the file contradicts its format."""
        return ConfigError(f"{self.name}: {what}")


class Blocks:
    """What `make(number)` gives, unpacked blocks, of which the last used are kept: :data:`CACHED` bytes at most.

    Threads: any may ask.
    """

    def __init__(self, make: Callable[[int], bytes], most: int = CACHED) -> None:
        self._make = make
        self._most = most
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> bytes:
        with self._lock:
            block = self._kept.get(number)
            if block is not None:
                self._kept.move_to_end(number)
                return block
        block = self._make(number)
        with self._lock:
            if number not in self._kept:
                self._kept[number] = block
                self._held += len(block)
            while self._held > self._most and len(self._kept) > 1:
                self._held -= len(self._kept.popitem(last=False)[1])
        return block


def open_source(path: str | os.PathLike[str]) -> Source:
    """The file, unpacked where it is packed as a whole.

    A stream that is packed as a whole cannot be entered in the middle: it is unpacked once, into a file that has no
    name and no room for zeros, in the directory for temporary files (TMPDIR).

    :raises ConfigError: no regular file, an empty one, one that cannot be unpacked. :raises OSError: it cannot be read.
    """
    name = os.fspath(path)
    if "\0" in os.fsdecode(name):
        raise ConfigError(f"{name!r} is no path: a name has no byte 0 in it")
    file = open_regular(path)
    for _ in range(_PACKED):
        head = file.read(4096)
        file.seek(0)
        codec = "zlib" if inflated_lime(head) else codec_of_bytes(head)
        if codec not in _CODECS:
            break
        packed = file
        with packed:
            file = _unpacked(packed, codec, os.fsdecode(name))
    return Source(file, os.fsdecode(name))


def temporary() -> BinaryIO:
    """A file without a name, for unpacked bytes."""
    return tempfile.TemporaryFile(prefix="fastmmu-")


def inflated_lime(head: bytes) -> bool:
    """LiME's compress=1: an image as one zlib stream."""
    if len(head) < 32 or head[0] & 0x0F != 8 or (head[0] << 8 | head[1]) % 31:
        return False
    try:
        return zlib.decompressobj().decompress(head, 4) == b"EMiL"
    except zlib.error:
        return False


def _unpacked(packed: BinaryIO, codec: str, name: str) -> BinaryIO:
    out = temporary()
    try:
        end = 0
        for data in unpacked(partial(packed.read, PIECE), codec, padded=True):
            end = _append(out, end, data)
        out.truncate(end)
        out.seek(0)
    except EndsEarly as error:
        out.close()
        raise ConfigError(f"{name}: is cut short: its compressed data ends early; copy it again") from error
    except CorruptData as error:
        out.close()
        raise ConfigError(f"{name}: cannot be unpacked: {error}; copy it again") from error
    except BaseException:
        out.close()
        raise
    return out


def _append(out: BinaryIO, end: int, data: bytes) -> int:
    for at in range(0, len(data), PIECE):
        part = data[at : at + PIECE]
        if part != _ZEROS[: len(part)]:
            out.seek(end)
            out.write(part)
        end += len(part)
    return end
