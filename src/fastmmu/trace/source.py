"""The bytes of a trace file, decompressed on the way; every failure is a TraceError that names the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from types import TracebackType

from fastmmu.errors import TraceError
from fastmmu.trace.ahead import Ahead, OtherProcess
from fastmmu.trace.archive import contents
from fastmmu.trace.codecs import CorruptData, EndsEarly, codec_of_bytes, unpacked
from fastmmu.trace.names import codec_of_name

__all__ = ["ByteSource"]

_READ = 1 << 18  # compressed bytes read at a time
_OUTPUT = 1 << 20  # decompressed bytes asked for at a time


class ByteSource:
    """A regular file opened for one pass.

    ``codec`` is None or one of `names.CODECS` (by suffix, else by content), ``size`` the bytes of the file, ``taken``
    those read of it, ``offset`` the (decompressed) bytes handed out. Concatenated streams are one, as for gzip, xz
    and zstd themselves.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.offset = 0
        self.taken = 0
        self.size = _regular_size(path)
        if self.size == 0:
            raise TraceError("the file is empty", path=path)
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
            head = self._file.read(16)
            self._file.seek(0)
        except OSError as error:
            raise _unreadable(path, error) from error
        self.codec = codec_of_name(path)
        found = codec_of_bytes(head)
        if self.codec is None:
            self.codec = found
        elif found != self.codec:
            self._file.close()
            raise TraceError(f"the name ends in .{self.codec}, the content is none", path=path, where="byte 0")
        self._unpacked: Iterator[bytes] | None = None
        if self.codec == "zip":
            self._unpacked = contents(self._file, path, _OUTPUT)
        elif self.codec is not None:
            self._unpacked = Ahead(unpacked(self._read_file, self.codec))
        self._output = b""
        self._output_at = 0

    def __enter__(self) -> ByteSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; again is no error."""
        if isinstance(self._unpacked, Ahead):
            self._unpacked.close()
        self._file.close()

    @property
    def fraction(self) -> float:
        """Part of the file that was read, 0 to 1."""
        return min(1.0, self.taken / self.size)

    def readinto(self, view: memoryview) -> int:
        """Fill `view` from its start; fewer bytes, at least 1, where that is cheap to have; 0 at the end."""
        if self.codec is None:
            try:
                n = self._file.readinto(view) or 0
            except OSError as error:
                raise _unreadable(self.path, error) from error
            self.taken += n
        else:
            if self._output_at == len(self._output):
                self._output = self._more()
                self._output_at = 0
            n = min(len(view), len(self._output) - self._output_at)
            view[:n] = memoryview(self._output)[self._output_at : self._output_at + n]
            self._output_at += n
        self.offset += n
        return n

    def skip(self, n: int) -> None:
        """Pass over `n` bytes of a file that is not compressed."""
        assert self.codec is None
        try:
            self._file.seek(n, os.SEEK_CUR)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        self.offset += n
        self.taken += n

    def fill(self, view: memoryview) -> int:
        """Fill `view`; fewer bytes only at the end."""
        done = 0
        while done < len(view):
            n = self.readinto(view[done:])
            if n == 0:
                break
            done += n
        return done

    def read(self, n: int) -> bytes:
        """`n` bytes, fewer at the end; memory is taken as the file gives, however large `n`."""
        data = bytearray()
        while len(data) < n:
            piece = bytearray(min(n - len(data), _OUTPUT))
            got = self.fill(memoryview(piece))
            data += memoryview(piece)[:got]
            if got < len(piece):
                break
        return bytes(data)

    def _read_file(self) -> bytes:
        try:
            data = self._file.read(_READ) or b""
        except OSError as error:
            raise _unreadable(self.path, error) from error
        self.taken += len(data)
        return data

    def _more(self) -> bytes:
        """The next decompressed bytes, b"" at the end of the last stream."""
        assert self._unpacked is not None
        try:
            data = next(self._unpacked, b"")
        except EndsEarly as error:
            raise TraceError(
                f"the .{self.codec} data ends early, after {self.offset} decompressed bytes; the file is truncated",
                path=self.path,
                where=f"byte {self.taken} of the compressed file",
            ) from error
        except OtherProcess as error:
            raise TraceError(str(error), path=self.path) from error
        except CorruptData as error:
            if self.codec == "zip":
                raise TraceError(f"the .zip archive cannot be read: {error}", path=self.path) from error
            where = f"near byte {self.taken} of the compressed file"
            raise TraceError(f"the .{self.codec} data is corrupt: {error}", path=self.path, where=where) from error
        if self.codec == "zip":
            self.taken = max(self.taken, min(self._file.tell(), self.size))
        return data


def _regular_size(path: str) -> int:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise TraceError("this is a directory; name a trace file in it", path=path)
    if not stat.S_ISREG(status.st_mode):
        raise TraceError("this is no regular file, and a trace is read more than once; save it to a file", path=path)
    return status.st_size


def _unreadable(path: str, error: OSError | ValueError) -> TraceError:
    return TraceError(f"cannot be read: {getattr(error, 'strerror', None) or error}", path=path)
