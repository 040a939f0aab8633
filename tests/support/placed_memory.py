"""Memory with holes for tests: a flat one, cut into segments of every kind."""

from __future__ import annotations

import itertools
import mmap
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fastmmu import PhysicalMemory
from fastmmu.paging.memory import FETCHED

__all__ = ["PAGE", "Placed", "flat_of", "words"]

PAGE = 4096


def words(*values: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


class Placed:
    """A flat memory cut into segments at random: mapped, copied and fetched ones, with holes and odd borders."""

    def __init__(self, rng: random.Random, flat: bytes, path: Path, *, writable: bool = False) -> None:
        borders = sorted({0, len(flat), *(self.border(rng, len(flat)) for _ in range(rng.randrange(2, 24)))})
        start, length, offset = [], [], []
        file = bytearray()
        for at, end in itertools.pairwise(borders):
            kind = rng.choice(("hole", "mapped", "mapped", "copied", "copied", "fetched", "fetched"))
            if kind == "hole":
                continue
            start.append(at)
            length.append(end - at)
            if kind == "fetched":
                offset.append(FETCHED)
                continue
            odd = rng.randrange(1, PAGE) if kind == "copied" else 0
            file += bytes((at + odd - len(file)) % PAGE)
            offset.append(len(file))
            file += flat[at:end]
        if not start:
            start, length, offset = [0], [len(flat)], [FETCHED]
        path.write_bytes(file + b"\0")
        self.pieces = [(at, at + n) for at, n in zip(start, length, strict=True)]
        self.fetches: Counter[int] = Counter()
        self.flat = flat
        with path.open("rb") as opened:
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self.memory = PhysicalMemory.from_segments(
                words(*start), words(*length), offset, data, file=opened, fetch=self.fetch, writable=writable
            )

    def border(self, rng: random.Random, n: int) -> int:
        at = rng.randrange(0, n + 1, PAGE)
        return min(n, at + rng.choice((0, 0, 0, 8, 0xC00, 0xFFC, 3, rng.randrange(PAGE))))

    def fetch(self, at: int) -> bytes:
        self.fetches[at] += 1
        return self.flat[at : at + PAGE].ljust(PAGE, b"\0")


def flat_of(mem: dict[int, int], nbytes: int) -> bytes:
    array = np.zeros(nbytes // 8, "<u8")
    for hpa, value in mem.items():
        array[hpa >> 3] = value
    return array.tobytes()
