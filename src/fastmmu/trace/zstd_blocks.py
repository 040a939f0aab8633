"""Zstandard by whole blocks: the package zstandard cannot limit its output, so it gets blocks, 128 KiB at most each."""

from __future__ import annotations

from typing import Any

__all__ = ["ZstdBlocks"]


class ZstdBlocks:
    """A decompressor (`codecs.Decompressor`) of the package zstandard; `output`: bytes that it makes in one call;
    `corrupt`: the error that is raised.

    Where they end: RFC 8878 §3.1.1. What is no frame is handed over as it is, for the library to say so.
    """

    _BLOCK = 1 << 17
    _HEAD, _BLOCKS, _CHECKSUM, _SKIPPED = range(4)

    def __init__(self, zstandard: Any, output: int, corrupt: type[Exception]) -> None:
        self._inner = zstandard.ZstdDecompressor().decompressobj(write_size=output)
        self._error, self._corrupt = zstandard.ZstdError, corrupt
        self._held = b""
        self._at = 0
        self._part = self._HEAD
        self._checksum = False
        self._left = 0  # bytes to be skipped
        self._short = True

    def decompress(self, data: bytes, limit: int) -> bytes:
        if data:
            self._held = self._held[self._at :] + data
            self._at = 0
        end, room = self._at, limit
        while room > 0 and not self._inner.eof:
            n, most = self._next(end)
            if not n:
                break
            end, room = end + n, room - most
            if self._part == self._HEAD:  # the frame is whole
                break
        self._short = room > 0
        piece, self._at = self._held[self._at : end], end
        try:
            return self._inner.decompress(piece) if piece else b""
        except self._error as error:
            raise self._corrupt(str(error)) from error

    def _next(self, at: int) -> tuple[int, int]:
        """How many bytes the next part of the frame has, and how many it makes at most; 0: it is not whole yet."""
        held, have = self._held, len(self._held) - at
        if self._part == self._BLOCKS and have >= 3:
            head = int.from_bytes(held[at : at + 3], "little")
            kind, size = head >> 1 & 3, head >> 3
            if not head:  # blocks of nothing, perhaps millions of them
                return 3 * ((have - len(held[at:].lstrip(b"\0"))) // 3), 0
            if kind == 3 or size > self._BLOCK:
                return have, 0
            n = 4 if kind == 1 else 3 + size
            if have >= n and head & 1:
                self._part = self._CHECKSUM if self._checksum else self._HEAD
            return (n, size if kind < 2 else self._BLOCK) if have >= n else (0, 0)
        if self._part == self._HEAD and have >= 8:
            magic, flags = int.from_bytes(held[at : at + 4], "little"), held[at + 4]
            if magic & 0xFFFFFFF0 == 0x184D2A50:
                self._part, self._left = self._SKIPPED, int.from_bytes(held[at + 4 : at + 8], "little")
                return 8, 0
            if magic != 0xFD2FB528:
                return have, 0
            single = flags >> 5 & 1
            n = 5 + (not single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
            if have >= n:
                self._part, self._checksum = self._BLOCKS, bool(flags & 4)
            return (n, 0) if have >= n else (0, 0)
        if self._part == self._CHECKSUM and have >= 4:
            self._part = self._HEAD
            return 4, 0
        if self._part == self._SKIPPED:
            n = min(have, self._left)
            self._left -= n
            return n, 0
        return 0, 0

    @property
    def needs_input(self) -> bool:
        return self._short

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data) + self._held[self._at :]
