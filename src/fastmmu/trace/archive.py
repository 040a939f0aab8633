"""Files in a .zip: one, or the chunks of one."""

from __future__ import annotations

import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Protocol

from fastmmu.errors import TraceError
from fastmmu.trace.codecs import CorruptData, unpacked

__all__ = ["BROKEN", "Member", "contents", "names", "opened"]

_CHUNK = re.compile(r"(.*/)?chunk\.\d+")
_CODECS = {zipfile.ZIP_BZIP2: "bz2", zipfile.ZIP_LZMA: "lzma", 93: "zst"}
_READ = 1 << 16
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError, IndexError,
          struct.error, MemoryError, CorruptData)  # fmt: skip
"""What reading a damaged or encrypted .zip raises, or one of a method that is not known."""


class Member(Protocol):
    """A file in a .zip."""

    def read(self, n: int) -> bytes:
        """Up to `n` bytes, b"" at its end."""


def names(path: str) -> list[str]:
    """Names of the files in a .zip; [] where it is none, or no regular file, whose opening might wait."""
    if not os.path.isfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return [info.filename for info in archive.infolist() if not info.is_dir()]
    except BROKEN:
        return []


def contents(file: IO[bytes], path: str, piece: int) -> Iterator[bytes]:
    """The bytes of the one file in a .zip, or of the chunks (chunk.0000, ...) one after the other.

    :raises TraceError: it holds several files. :raises CorruptData: it is damaged, encrypted, or of another method.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            found = [info for info in archive.infolist() if not info.is_dir()]
            if len(found) > 1 and not all(_CHUNK.fullmatch(info.filename) for info in found):
                some = ", ".join(info.filename for info in found[:3])
                raise TraceError(f"the .zip holds {len(found)} files ({some}, ...); unpack it, and name one", path=path)
            for info in found:
                member = opened(archive, file, info)
                while data := member.read(piece):
                    yield data
    except TraceError:
        raise
    except BROKEN as error:
        raise CorruptData(" ".join(str(error).split()) or type(error).__name__) from error


def opened(archive: zipfile.ZipFile, file: IO[bytes], info: zipfile.ZipInfo) -> Member:
    """A file in a .zip, whose bytes `file` gives, which nobody else reads meanwhile.

    :raises BROKEN: it is damaged, encrypted or of another method; its reads, too.
    """
    return _Unpacked(file, info) if info.compress_type in _CODECS else archive.open(info)


class _Unpacked:
    """One of a method that `zipfile` decompresses without a limit: 256 MB come of 300 bytes of bzip2."""

    def __init__(self, file: IO[bytes], info: zipfile.ZipInfo) -> None:
        file.seek(info.header_offset)
        head = file.read(30)
        if info.flag_bits & 1 or head[:4] != b"PK\3\4" or len(head) < 30:
            raise zipfile.BadZipFile(f"{info.filename} is encrypted, or its header is missing")
        file.seek(sum(struct.unpack_from("<HH", head, 26)), os.SEEK_CUR)
        self._file, self._info = file, info
        self._left = info.compress_size
        self._first = b""
        if info.compress_type == zipfile.ZIP_LZMA:  # version, length of the properties, properties
            self._first = self._packed(9)[4:] + (
                b"\xff" * 8 if info.flag_bits & 2 else struct.pack("<Q", info.file_size)
            )
        self._pieces = unpacked(self._packed, _CODECS[info.compress_type])
        self._held = memoryview(b"")
        self._crc = self._done = 0

    def _packed(self, most: int = _READ) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        data = self._file.read(min(most, self._left))
        self._left -= len(data)
        return data

    def read(self, n: int) -> bytes:
        while not self._held:
            piece = next(self._pieces, b"")
            self._crc, self._done = zlib.crc32(piece, self._crc), self._done + len(piece)
            if self._done > self._info.file_size or (not piece and self._crc != self._info.CRC):
                raise zipfile.BadZipFile(f"Bad CRC-32 or length of {self._info.filename}")
            if not piece:
                return b""
            self._held = memoryview(piece)
        data, self._held = bytes(self._held[:n]), self._held[n:]
        return data
