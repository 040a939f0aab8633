"""Streams of references for the data caches: addresses and operations, by name."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from fastmmu.ops import Op
from fastmmu.trace import bundle
from fastmmu.trace.read import read_trace

__all__ = ["STREAMS", "stream"]

U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]

STREAMS = ("sequential", "uniform", "zipf", "strided", "real")


def _real(n: int) -> tuple[U64, U8]:
    """The accesses of the traces that fastmmu brings, one after the other, as often as it takes."""
    addresses, ops, total = [], [], 0
    for path in itertools.cycle(bundle.bundled().values()):
        for batch in read_trace(path).batches():
            taken = batch.take(batch.op <= Op.FETCH)
            addresses.append(taken.addr & np.uint64((1 << 47) - 1))
            ops.append(taken.op)
            total += len(taken)
            if total >= n:
                return np.concatenate(addresses)[:n], np.concatenate(ops)[:n]
    raise AssertionError("no traces")


def stream(name: str, n: int, *, seed: int = 1) -> tuple[U64, U8]:
    """`n` host-physical addresses and their operations; of those that are drawn a quarter writes, an eighth fetches."""
    if name == "real":
        return _real(n)
    rng = np.random.default_rng(seed)
    if name == "sequential":
        hpa = np.arange(n, dtype=np.uint64) * np.uint64(16) % np.uint64(12 << 20)
    elif name == "uniform":
        hpa = rng.integers(0, 24 << 20, n, dtype=np.uint64)
    elif name == "zipf":
        hpa = rng.permutation(1 << 18).astype(np.uint64)[rng.zipf(1.1, n) % (1 << 18)] * np.uint64(64)
    else:
        hpa = np.arange(n, dtype=np.uint64) * np.uint64(4096 + 64) % np.uint64(40 << 20)
    ops = np.array([Op.READ] * 4 + [Op.WRITE, Op.MODIFY, Op.READ, Op.FETCH], np.uint8)
    return hpa, rng.choice(ops, n)
