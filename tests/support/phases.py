"""A long trace that is made as it is read: phases of a program, each with code and data of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastmmu import Op, Trace
from fastmmu.trace import Batch
from fastmmu.trace.base import check_chunk

__all__ = ["Phases"]

_OPS = np.array([Op.FETCH] * 8 + [Op.READ] * 5 + [Op.WRITE] * 2 + [Op.MODIFY], np.uint8)
_SETS = (150, 3000, 600, 20_000, 1500)  # pages of data of a phase, in turn
_BLOCK = 1 << 18


class Phases(Trace):
    """`n` accesses. A phase has `length` of them: fetches in 24 pages, data in a set of pages, few of them hot, some
    of it in rows of ascending addresses."""

    format = "made"

    def __init__(self, n: int, length: int = 5_000_000, seed: int = 0) -> None:
        self.n, self.length, self.seed = n, length, seed
        self.total, self.name = n, f"phases of {length:,} accesses"

    def batches(self, chunk: int = _BLOCK) -> Iterator[Batch]:
        check_chunk(chunk)
        size = np.full(_BLOCK, 8, np.uint8)
        for number, first in enumerate(range(0, self.n, _BLOCK)):
            random = np.random.default_rng((self.seed, number))
            addr, op = self._block(random.integers(0, 1 << 63, _BLOCK, np.uint64), first)
            block = Batch(op, size, addr)[: self.n - first]
            for start in range(0, len(block), chunk):
                yield block[start : start + chunk]

    def _block(self, words: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
        at = np.arange(first, first + len(words), dtype=np.uint64)
        phase = first // self.length
        pages = _SETS[phase % len(_SETS)]
        op = _OPS[(words & np.uint64(15)).astype(np.intp)]
        hot = _hot(pages)[(words >> np.uint64(8) & np.uint64(0xFFFF)).astype(np.intp)]
        swept = (at >> np.uint64(3)) % np.uint64(64 * pages)  # 64 bytes after every eight accesses
        data = np.where(words >> np.uint64(60) == 7, swept << np.uint64(6), hot << np.uint64(12))
        base = np.uint64(0x7F00_0000_0000 + (phase % 37 << 27))
        code = np.uint64(0x40_0000 + (phase % 11 << 17)) + (
            (words >> np.uint64(24) & np.uint64(0xFF)) % np.uint64(24) << np.uint64(12)
        )
        addr = np.where(op == Op.FETCH, code, base + data) + (words >> np.uint64(40) & np.uint64(0xFF8))
        return addr, op


_tables: dict[int, np.ndarray] = {}


def _hot(pages: int) -> np.ndarray:
    """A page for each of 65536 numbers; one in `i` has about 1 / i of them."""
    if pages not in _tables:
        rank = np.minimum(np.exp(np.linspace(0, np.log(pages), 1 << 16)), pages).astype(np.uint64) - np.uint64(1)
        _tables[pages] = rank * np.uint64(7919) % np.uint64(pages)  # hot ones far apart
    return _tables[pages]
