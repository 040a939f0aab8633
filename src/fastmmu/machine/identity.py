"""What a figure was made of: the trace by its content, the costs, the TLB; results are put side by side by these."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["UNKNOWN", "Content", "Origin"]

_BLOCK = 1 << 15  # words that one sum is made of; they and their weights stay in the first- and second-level caches


@dataclass(frozen=True)
class Origin:
    """What a figure was made of.

    ``trace``: name of the trace; ``path``: its file, "" for one in memory, bytes that are no text as \\xff;
    ``content``: hash of the events that were run (:class:`Content`); ``costs``: identity of the cost model
    (``CostModel.identity``), "" where nothing was priced; ``geometry``: arrays of the TLB (``str(Geometry)``).
    """

    trace: str = ""
    path: str = ""
    content: str = ""
    costs: str = ""
    geometry: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "path", self.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        )

    @property
    def run_of(self) -> tuple[str, ...]:
        """Equal for figures of the same events at the same costs. A trace of unknown content goes by its name."""
        return ("content", self.content, self.costs) if self.content else ("name", self.trace, self.path, self.costs)

    def columns(self) -> dict[str, str]:
        """First columns of a row in a file: trace, path, content."""
        return {"trace": self.trace, "path": self.path, "content": self.content}

    def made_with(self) -> dict[str, str]:
        """Further columns: costs, geometry, those that are not ""."""
        return {name: value for name in ("costs", "geometry") if (value := getattr(self, name))}


UNKNOWN = Origin()
"""Of what was not made by a run."""


class Content:
    """A hash of events, in whatever batches they come: 24 hexadecimal digits, equal for equal events.

    It tells traces apart that somebody has, not ones that were made to collide. Words of 64 bits are weighted and
    summed by blocks, which takes a fraction of the time that the simulation of the events takes; BLAKE2b goes over the
    sums.
    """

    def __init__(self) -> None:
        self._streams: list[_Stream] = []

    def update(self, *columns: npt.NDArray[Any]) -> None:
        """Further events, as contiguous columns of uint8 or uint64, always as many: a stream each."""
        if not self._streams:
            self._streams = [_Stream() for _ in columns]
        for stream, column in zip(self._streams, columns, strict=True):
            stream.update(column)

    def digest(self) -> str:
        """The hash of the events until now."""
        outer = hashlib.blake2b(digest_size=12)
        for stream in self._streams:
            outer.update(stream.digest())
        return outer.hexdigest()

    def kept(self) -> tuple[list[list[Any]], dict[str, npt.NDArray[np.uint8]]]:
        """What it has of the events until now: for each stream numbers, and an array."""
        numbers = [[s._sum & 0xFFFF_FFFF_FFFF_FFFF, s._at, s._bytes, s._rest.hex()] for s in self._streams]
        return numbers, {f"content{i}": np.frombuffer(bytes(s._sums), np.uint8) for i, s in enumerate(self._streams)}

    def resume(self, numbers: list[list[Any]], arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Go on from there.

        :raises ValueError: :meth:`kept` gives no such thing.
        """
        self._streams = [_Stream() for _ in numbers]
        for i, (stream, (total, at, nbytes, rest)) in enumerate(zip(self._streams, numbers, strict=True)):
            stream._sum, stream._at, stream._bytes, stream._rest = int(total), int(at), int(nbytes), bytes.fromhex(rest)
            stream._sums = bytearray(arrays[f"content{i}"].tobytes())
            if not (0 <= stream._at < _BLOCK and stream._bytes >= 0 and len(stream._rest) < 8):
                raise ValueError("no hash of events")


def _weights() -> npt.NDArray[np.uint64]:
    """Odd numbers without pattern (splitmix64), the same ones for ever."""
    x = np.arange(1, _BLOCK + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)


_WEIGHTS = _weights()


class _Stream:
    """One column, as words of 8 bytes."""

    def __init__(self) -> None:
        self._sums = bytearray()  # of full blocks, 8 bytes each
        self._sum = self._at = 0  # of the block that is not full
        self._bytes = 0
        self._rest = b""  # less than a word

    def update(self, column: npt.NDArray[Any]) -> None:
        self._bytes += column.nbytes
        if column.dtype.itemsize < 8:
            if self._rest or column.nbytes % 8:
                data = self._rest + column.tobytes()
                whole = len(data) & ~7
                column, self._rest = np.frombuffer(data[:whole], np.uint8), data[whole:]
            column = column.view(np.uint64)
        self._words(column)

    def _words(self, words: npt.NDArray[Any]) -> None:
        done = 0
        while done < len(words):
            part = words[done : done + _BLOCK - self._at]
            mixed = part >> np.uint64(32)  # so that the highest bits count in the lowest, too
            mixed ^= part
            mixed *= _WEIGHTS[self._at : self._at + len(part)]
            self._sum += int(mixed.sum())
            self._at += len(part)
            done += len(part)
            if self._at == _BLOCK:
                self._sums += (self._sum & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
                self._sum = self._at = 0

    def digest(self) -> bytes:
        sums = hashlib.blake2b(self._sums, digest_size=16)
        sums.update((self._sum & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little"))
        sums.update(self._bytes.to_bytes(8, "little") + self._rest)
        return sums.digest()
