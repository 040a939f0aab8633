"""Compressions as decompressors and writers of one shape: .gz, .xz, .zst, .bz2, .lzma, .lz4, .sz (snappy frames).

gz, xz, bz2 and lzma are the standard library's; zst is Python's from 3.14 on, before that the package zstandard; lz4 is
the package lz4, sz the package cramjam, to which whole frames are handed.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import IO, Any, Protocol, cast

from fastmmu.errors import MissingExtraError
from fastmmu.trace.magics import kind_of
from fastmmu.trace.zstd_blocks import ZstdBlocks

__all__ = ["CorruptData", "Decompressor", "EndsEarly", "codec_of_bytes", "compressing", "decompressor", "unpacked"]


PIECE = 1 << 17
"""Bytes compressed in one call: xz takes some 50 ms for them."""

_OUTPUT = 1 << 18  # bytes decompressed in one call: they stay in the second-level cache
_MEMORY = 1 << 30  # bytes that lzma may take: more than any preset, and than most files need


class CorruptData(Exception):
    """What any of the libraries says of data that it cannot decompress."""


class EndsEarly(CorruptData):
    """A stream that is not whole."""


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
    kind = kind_of(head)
    return kind.codec or None if kind is not None else None


def unpacked(read: Callable[[], bytes], codec: str, *, padded: bool = False) -> Iterator[bytes]:
    """The decompressed bytes of a file, whose bytes `read` gives, b"" at its end. Streams one behind the other are one.

    `padded`: zeros between and behind streams are padding, as they always are of gz and xz.

    :raises EndsEarly: the last stream is not whole. :raises CorruptData: it cannot be decompressed.
    """
    data, first = b"", True
    most = _OUTPUT >> 2  # less at first: many look at the begin of a file alone
    while data := data or read():
        if padded or codec in ("gz", "xz"):
            data = data.lstrip(b"\0")
            if not data:
                continue
        stream, begun = decompressor(codec), False
        while not stream.eof:
            ended = False
            if not data and stream.needs_input:
                data = read()
                ended = not data
            try:
                out = stream.decompress(data, most)
            except CorruptData as error:
                if first or begun:
                    raise
                raise CorruptData(f"something else follows a stream that is whole ({error})") from error
            data = b""
            if out:
                begun = True
                yield out
                most = _OUTPUT
            elif ended and not stream.eof:
                if getattr(stream, "whole", False):
                    return
                raise EndsEarly("the data ends early")
        data, first = stream.unused_data, False


def decompressor(codec: str) -> Decompressor:
    """A decompressor for one stream: of a codec that has a name here, or "zlib".

    Raises MissingExtraError for zst, lz4 and sz where no library is installed."""
    if codec in ("gz", "zlib"):
        return _Zlib(31 if codec == "gz" else 15)
    if codec == "xz":
        return _Held(lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY), lzma.LZMAError)
    if codec == "bz2":
        return _Held(bz2.BZ2Decompressor(), OSError)
    if codec == "lzma":
        return _Held(lzma.LZMADecompressor(lzma.FORMAT_ALONE, _MEMORY), lzma.LZMAError)
    if codec == "lz4":
        return _Held(_lz4().LZ4FrameDecompressor(), RuntimeError)
    if codec == "sz":
        return _Snappy(_cramjam().snappy)
    zstd = _zstd()
    if hasattr(zstd, "ZstdFile"):
        return _Held(zstd.ZstdDecompressor(), zstd.ZstdError)
    return ZstdBlocks(zstd, _OUTPUT, CorruptData)


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
    elif codec == "bz2":
        out = bz2.BZ2File(raw, "wb")
    elif codec == "lzma":
        out = lzma.LZMAFile(raw, "wb", format=lzma.FORMAT_ALONE)  # noqa: SIM115 - closed below
    elif codec == "lz4":
        out = _lz4().LZ4FrameFile(raw, "wb", content_checksum=True)
    elif codec == "sz":
        out = _SnappyFile(raw, _cramjam().snappy)
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


def _lz4() -> Any:
    try:
        return import_module("lz4.frame")  # which has no types
    except ImportError as error:
        raise MissingExtraError("an .lz4 file", "traces") from error


def _cramjam() -> Any:
    try:
        import cramjam
    except ImportError as error:
        raise MissingExtraError("a .sz file", "traces") from error
    return cramjam


class _Held:
    """lzma, bz2, lz4 and compression.zstd: the shape is theirs."""

    def __init__(self, inner: Any, error: type[Exception]) -> None:
        self._inner = inner
        self._error = error

    def decompress(self, data: bytes, limit: int) -> bytes:
        try:
            return bytes(self._inner.decompress(data, limit))
        except MemoryError as error:
            raise CorruptData("it takes more memory than there is") from error
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
        return bytes(self._inner.unused_data or b"")


class _Zlib:
    """gzip and zlib: `wbits` as zlib's."""

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)

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


_SNAPPY_HEAD = b"\xff\x06\0\0sNaPpY"


class _Snappy:
    """Snappy's framing format: chunks of a type, three bytes of length, and data of at most 64 KiB decompressed.

    cramjam takes whole streams, so each chunk is handed to it behind a head of its own; it compares the checksums.
    """

    _MOST = 1 << 17  # bytes of a chunk: 64 KiB that do not compress take some more
    eof = False  # a stream has no end of its own

    def __init__(self, snappy: Any) -> None:
        self._decompress = snappy.decompress
        self._held = b""
        self._started = False
        self._short = False

    def decompress(self, data: bytes, limit: int) -> bytes:
        self._held += data
        out: list[bytes] = []
        at = 0
        self._short = False
        while limit > 0:
            kind, length = self._held[at : at + 1], int.from_bytes(self._held[at + 1 : at + 4], "little")
            if len(self._held) - at < 4 or (kind in b"\0\1\xff" and len(self._held) - at < 4 + length <= self._MOST):
                self._short = True
                break
            if not self._started and kind != b"\xff":
                raise CorruptData("no snappy frame")
            if (kind < b"\x80" or kind == b"\xff") and (kind not in b"\0\1\xff" or 4 + length > self._MOST):
                raise CorruptData(f"a chunk of type {kind[0]:#x} and {length} bytes")
            chunk = self._held[at : at + 4 + length]
            if len(chunk) < 4 + length:
                self._short = True
                break
            at += len(chunk)
            self._started = True
            if kind == b"\xff" and chunk != _SNAPPY_HEAD:
                raise CorruptData("a stream identifier that is none")
            if kind in b"\0\1":
                try:
                    made = bytes(self._decompress(_SNAPPY_HEAD + chunk))
                except Exception as error:
                    raise CorruptData(" ".join(str(error).split())) from error
                limit -= len(made)
                out.append(made)
        self._held = self._held[at:]
        return b"".join(out)

    @property
    def needs_input(self) -> bool:
        return self._short or not self._held

    @property
    def whole(self) -> bool:
        """The data may end here."""
        return not self._held

    unused_data = b""


class _SnappyFile:
    """A file that compresses into snappy frames."""

    closed = False

    def __init__(self, raw: IO[bytes], snappy: Any) -> None:
        self._raw = raw
        self._compress = snappy.compress
        self._raw.write(_SNAPPY_HEAD)

    def write(self, data: memoryview) -> None:
        """The frames of `data`, without the head, which the file has."""
        self._raw.write(bytes(self._compress(bytes(data)))[len(_SNAPPY_HEAD) :])

    def close(self) -> None:
        """Nothing is held back."""
