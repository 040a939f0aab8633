"""The compressions .gz, .xz and .zst as decompressors and writers of one shape."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import sys
import zlib
from collections.abc import Iterator
from typing import IO, Any, Protocol, cast

from fastmmu.errors import MissingExtraError

__all__ = ["CorruptData", "Decompressor", "codec_of_bytes", "compressing", "decompressor"]


PIECE = 1 << 17
"""Bytes compressed in one call: xz takes some 50 ms for them."""


class CorruptData(Exception):
    """What any of the libraries says of data that it cannot decompress."""


class Decompressor(Protocol):
    """One compressed stream, member or frame. Errors: :class:`CorruptData`."""

    def decompress(self, data: bytes, limit: int) -> bytes:
        """About `limit` bytes of output at most; b"" for `data` goes on with what is held back."""

    @property
    def needs_input(self) -> bool:
        """Nothing is held back."""

    @property
    def eof(self) -> bool:
        """The end of the stream was reached, its checksum is right."""

    @property
    def unused_data(self) -> bytes:
        """Input beyond the end of the stream."""


def codec_of_bytes(head: bytes) -> str | None:
    """Codec whose magic number the first bytes of a file are, or None."""
    if head[:3] == b"\x1f\x8b\x08" and len(head) > 3 and not head[3] & 0xE0:
        return "gz"
    if head[:6] == b"\xfd7zXZ\0":
        return "xz"
    if head[:4] == b"\x28\xb5\x2f\xfd":
        return "zst"
    return None


def decompressor(codec: str) -> Decompressor:
    """A decompressor for one stream. Raises MissingExtraError for zst where no library is installed."""
    if codec == "gz":
        return _Gz()
    if codec == "xz":
        return _Held(lzma.LZMADecompressor(lzma.FORMAT_XZ), lzma.LZMAError)
    zstd = _zstd()
    if hasattr(zstd, "ZstdFile"):
        return _Held(zstd.ZstdDecompressor(), zstd.ZstdError)
    return _Zstandard(zstd)


@contextlib.contextmanager
def compressing(raw: IO[bytes], codec: str | None) -> Iterator[IO[bytes]]:
    """A binary file that compresses into `raw`; the stream is complete when the block ends without an exception."""
    if codec is None:
        yield raw
        return
    out: Any
    if codec == "gz":
        out = gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0)
    elif codec == "xz":
        out = lzma.LZMAFile(raw, "wb", preset=6)  # noqa: SIM115 - closed below
    else:
        zstd = _zstd()
        if hasattr(zstd, "ZstdFile"):
            out = zstd.ZstdFile(raw, "wb", options={zstd.CompressionParameter.checksum_flag: 1})
        else:
            out = zstd.ZstdCompressor(write_checksum=True).stream_writer(raw, closefd=False)
    try:
        yield cast(IO[bytes], _InPieces(out))
    finally:
        out.close()


class _InPieces:
    """A file that compresses little at a time: Python looks for signals between two calls alone."""

    def __init__(self, out: Any) -> None:
        self._out = out

    def write(self, data: Any) -> int:
        whole = memoryview(data).cast("B")
        for at in range(0, len(whole), PIECE):
            self._out.write(whole[at : at + PIECE])
        return len(whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def _zstd() -> Any:
    """compression.zstd (Python 3.14 on) or the package zstandard; only the former has ZstdFile."""
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("a .zst file", "zstd") from error
    return zstandard


class _Held:
    """lzma and compression.zstd: the shape is theirs."""

    def __init__(self, inner: Any, error: type[Exception]) -> None:
        self._inner = inner
        self._error = error

    def decompress(self, data: bytes, limit: int) -> bytes:
        try:
            return bytes(self._inner.decompress(data, limit))
        except (self._error, EOFError) as error:
            raise CorruptData(str(error)) from error

    @property
    def needs_input(self) -> bool:
        return bool(self._inner.needs_input)

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)


class _Gz:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)

    def decompress(self, data: bytes, limit: int) -> bytes:
        try:
            return self._inner.decompress(self._inner.unconsumed_tail + data, limit)
        except zlib.error as error:
            raise CorruptData(str(error)) from error

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


class _Zstandard:
    """The package zstandard cannot limit its output, so it gets its input in small pieces.

    A block makes at most 128 KiB of output and takes at least 4 bytes.
    """

    _PIECE = 1 << 12

    def __init__(self, zstandard: Any) -> None:
        self._inner = zstandard.ZstdDecompressor().decompressobj()
        self._error = zstandard.ZstdError
        self._held = b""
        self._at = 0

    def decompress(self, data: bytes, limit: int) -> bytes:
        if data:
            self._held = self._held[self._at :] + data
            self._at = 0
        out: list[bytes] = []
        while limit > 0 and self._at < len(self._held) and not self._inner.eof:
            piece = self._held[self._at : self._at + self._PIECE]
            try:
                made = self._inner.decompress(piece)
            except self._error as error:
                raise CorruptData(str(error)) from error
            self._at += len(piece)
            limit -= len(made)
            out.append(made)
        return b"".join(out)

    @property
    def needs_input(self) -> bool:
        return self._at == len(self._held)

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data) + self._held[self._at :]
