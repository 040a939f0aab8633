"""Unpacked files: without a name, in the directory for temporary files (TMPDIR), and without room for zeros.

A file whose blocks are known is unpacked where it is looked at, a block once; of a block only what lies before the end
of what is asked for. Other files are unpacked as a whole. In memory stand a piece of :data:`PIECE` bytes at a time and
what the decompressors hold.
"""

from __future__ import annotations

import os
import tempfile
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from fastmmu.errors import ConfigError
from fastmmu.image.packed import Blocks, Data
from fastmmu.trace.codecs import CorruptData, EndsEarly, unpacked

__all__ = ["PIECE", "Filled", "temporary", "whole"]

PIECE = 1 << 18
_ZEROS = bytes(PIECE)
_STARTED = 4  # blocks that may be unpacked in part: each holds a decompressor


def temporary() -> BinaryIO:
    """A file without a name, for unpacked bytes."""
    return tempfile.TemporaryFile(prefix="fastmmu-")


def whole(packed: BinaryIO, codec: str, name: str) -> BinaryIO:
    """All of a file, unpacked.

    :raises ConfigError: it cannot be unpacked, or there is no room.
    """
    out = temporary()
    try:
        end = 0
        for data in unpacked(partial(packed.read, PIECE), codec, padded=True):
            _put(out, end, data, name)
            end += len(data)
        _lengthen(out, end, name)
    except CorruptData as error:
        out.close()
        raise _corrupt(name, error) from error
    except BaseException:
        out.close()
        raise
    return out


class Filled:
    """A file of `blocks.size` bytes, zero until :meth:`need` was asked for them.

    Threads: any may ask.
    """

    def __init__(self, data: Data, blocks: Blocks, name: str) -> None:
        self._data = data
        self._blocks = blocks
        self._name = name
        self._done = bytearray(len(blocks))
        self._started: OrderedDict[int, tuple[Iterator[bytes], int]] = OrderedDict()
        self._lock = threading.Lock()
        self.unpacked = 0  # bytes, of which some again where many blocks were started
        self.file = temporary()
        _lengthen(self.file, blocks.size, name)

    def need(self, offset: int, n: int) -> None:
        """Unpack what bytes offset..offset+n-1 are in.

        :raises ConfigError: it cannot be unpacked, or there is no room.
        """
        at = self._blocks.at
        number = bisect_right(at, offset) - 1
        while number < len(at) and at[number] < offset + n:
            if not self._done[number]:
                with self._lock:
                    self._fill(number, offset + n - at[number])
            number += 1

    def done_around(self, offset: int) -> tuple[int, int]:
        """The bytes of the file that are there, of the block that holds a byte: all, or its begin."""
        number = bisect_right(self._blocks.at, offset) - 1
        start = self._blocks.at[number]
        if self._done[number]:
            return start, start + self._blocks[number].out
        return start, start + self._started.get(number, (None, 0))[1]

    def _fill(self, number: int, upto: int) -> None:
        if self._done[number]:
            return
        block = self._blocks[number]
        pieces, done = self._started.pop(number, (None, 0))
        if done >= min(upto, block.out):
            self._keep(number, pieces, done)
            return
        if pieces is None:
            pieces = unpacked(self._reader(number), self._blocks.codec)
        try:
            for data in pieces:
                self._put(number, done, data, block.out)
                done += len(data)
                if upto <= done < block.out:
                    self._keep(number, pieces, done)
                    return
        except EndsEarly as error:  # a block of xz is no whole stream
            if self._blocks.codec != "xz" or done < block.out:
                raise _corrupt(self._name, error) from error
        except CorruptData as error:
            raise _corrupt(self._name, error) from error
        if done != block.out:
            raise self._wrong(number, done, block.out)
        self._done[number] = 1

    def _keep(self, number: int, pieces: Iterator[bytes] | None, done: int) -> None:
        if pieces is not None:
            self._started[number] = pieces, done
        if len(self._started) > _STARTED:
            self._started.popitem(last=False)

    def _put(self, number: int, done: int, data: bytes, most: int) -> None:
        if done + len(data) > most:
            raise self._wrong(number, done + len(data), most)
        _put(self.file, self._blocks.at[number] + done, data, self._name)
        self.unpacked += len(data)

    def _wrong(self, number: int, found: int, told: int) -> ConfigError:
        place = self._blocks.start[number]
        return ConfigError(f"{self._name}: the block at byte {place} has {found} bytes unpacked, and {told} as it says")

    def _reader(self, number: int) -> Callable[[], bytes]:
        block = self._blocks[number]

        def pieces() -> Iterator[bytes]:
            yield block.head
            for at in range(block.start, block.start + block.length, PIECE):
                yield bytes(self._data[at : min(at + PIECE, block.start + block.length)])

        given = filter(None, pieces())
        return lambda: next(given, b"")


def _put(out: BinaryIO, at: int, data: bytes, name: str) -> None:
    for start in range(0, len(data), PIECE):
        part = data[start : start + PIECE]
        if part != _ZEROS[: len(part)]:
            try:
                done = 0
                while done < len(part):
                    done += os.pwrite(out.fileno(), part[done:], at + start + done)
            except OSError as error:
                raise _no_room(name, at + start + len(part), error) from error


def _lengthen(out: BinaryIO, size: int, name: str) -> None:
    try:
        os.truncate(out.fileno(), size)
    except (OSError, OverflowError) as error:
        raise _no_room(name, size, error) from error


def _no_room(name: str, size: int, error: Exception) -> ConfigError:
    said = getattr(error, "strerror", None) or error
    return ConfigError(
        f"{name}: no room for {size} bytes of it, unpacked, in {tempfile.gettempdir()} ({said}); TMPDIR names another "
        "directory"
    )


def _corrupt(name: str, error: CorruptData) -> ConfigError:
    if isinstance(error, EndsEarly):
        return ConfigError(f"{name}: is cut short: its compressed data ends early; copy it again")
    return ConfigError(f"{name}: cannot be unpacked: {error}; copy it again")
