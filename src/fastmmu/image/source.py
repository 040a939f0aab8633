"""The bytes of a file, as they are or unpacked: what the readers of the formats read."""

from __future__ import annotations

import mmap
import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

from fastmmu.errors import ConfigError
from fastmmu.image.filled import Filled, whole
from fastmmu.image.formats import HEAD
from fastmmu.image.packed import FileBytes, blocks_of
from fastmmu.image.raw import open_regular
from fastmmu.trace.codecs import codec_of_bytes

__all__ = ["Cache", "Source", "inflated_lime", "open_source"]

_CODECS = ("gz", "xz", "zst", "bz2", "lz4", "sz", "zlib")
_PACKED = 3  # times that a file may be packed, one in the other
CACHED = 1 << 26
"""Bytes of unpacked blocks that are kept, of a file whose format is compressed inside."""


class Source:
    """An open file, mapped. ``data`` is all of it, which is never written to; where it is ``filled`` as it is looked
    at, :meth:`need` is called before.
    """

    def __init__(self, file: BinaryIO, name: str, filled: Filled | None = None) -> None:
        self.file = file
        self.name = name
        self.filled = filled
        self.size = os.fstat(file.fileno()).st_size
        if self.size == 0:
            raise ConfigError(f"{name}: holds 0 bytes; give an image of physical memory")
        try:
            self.data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(f"{name}: {self.size} bytes cannot be mapped: {error}") from error

    def become(self, other: Source) -> None:
        """The memory that this file describes lies in another one."""
        self.file, self.name, self.data, self.size, self.filled = (
            other.file, other.name, other.data, other.size, other.filled
        )  # fmt: skip

    def need(self, offset: int, n: int) -> None:
        """These bytes of `data` are going to be looked at."""
        if self.filled is not None:
            self.filled.need(offset, n)

    def bytes_at(self, offset: int, n: int) -> bytes:
        """`n` bytes; raises ConfigError where the file ends before."""
        self.check(offset, n)
        self.need(offset, n)
        return bytes(self.data[offset : offset + n])

    def check(self, offset: int, n: int) -> None:
        """Raises ConfigError where the file ends before so many bytes at a byte of it."""
        if offset < 0 or n < 0 or offset + n > self.size:
            raise ConfigError(
                f"{self.name}: is cut short: {n} bytes at byte {offset} are part of it, and it has {self.size}; "
                "copy or dump it again"
            )

    @property
    def head(self) -> bytes:
        """The first bytes, which tell the format."""
        return self.bytes_at(0, min(self.size, HEAD))

    def fields(self, layout: str, offset: int) -> tuple[Any, ...]:
        """The values of a struct at a byte of the file."""
        return struct.unpack(layout, self.bytes_at(offset, struct.calcsize(layout)))

    def wrong(self, what: str) -> ConfigError:
        """An error to raise: the file contradicts its format."""
        return ConfigError(f"{self.name}: {what}")


class Cache:
    """What `make(number)` gives, unpacked blocks, of which the last made are kept: :data:`CACHED` bytes at most.

    Threads: any may ask.
    """

    def __init__(self, make: Callable[[int], bytes], most: int = CACHED) -> None:
        self._make = make
        self._most = most
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> bytes:
        block = self._kept.get(number)
        if block is not None:
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
    """The file, unpacked where it is packed as a whole: in parts as they are looked at, where its blocks are known
    (:mod:`~fastmmu.image.packed`), else all of it once, into a file without a name (:mod:`~fastmmu.image.filled`).

    :raises ConfigError: no regular file, an empty one, one that cannot be unpacked. :raises OSError: it cannot be read.
    """
    name = os.fspath(path)
    if "\0" in os.fsdecode(name):
        raise ConfigError(f"{name!r} is no path: a name has no byte 0 in it")
    source = Source(open_regular(path), os.fsdecode(name))
    for _ in range(_PACKED):
        head = source.bytes_at(0, min(source.size, HEAD))
        codec = "zlib" if inflated_lime(head) else codec_of_bytes(head)
        if codec not in _CODECS:
            break
        source = _unpacked(source, codec)
    return source


def inflated_lime(head: bytes) -> bool:
    """LiME's compress=1: an image as one zlib stream."""
    if len(head) < 32 or head[0] & 0x0F != 8 or (head[0] << 8 | head[1]) % 31:
        return False
    try:
        return zlib.decompressobj().decompress(head, 4) == b"EMiL"
    except zlib.error:
        return False


def _unpacked(source: Source, codec: str) -> Source:
    if source.filled is not None:  # packed twice
        source.need(0, source.size)
    data = FileBytes(source.file)
    blocks = blocks_of(data, codec)
    if blocks is not None:
        filled = Filled(data, blocks, source.name)
        return Source(filled.file, source.name, filled)
    source.file.seek(0)
    with source.file:
        return Source(whole(source.file, codec, source.name), source.name)
