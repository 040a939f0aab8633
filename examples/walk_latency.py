"""Cycles of a walk by the fixed shares of the cost model and by simulated caches: the table of docs/experiments.md.

Every page is touched in its order first, so that frames in a row are just that; then 200,000 pages are read, one line
each, in order or drawn alike. Tables stand from the beginning (premapped).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

import fastmmu

N = 200_000
SIZES = (16, 256, 4096, 8192)  # MB
HOW = ("in order", "drawn")
FRAMES = ("first-touch", "shuffled")


def trace(size: int, how: str) -> fastmmu.trace.Trace:
    """Reads behind one of each page."""
    chance = np.random.default_rng(19)
    pages = size * 256
    page = np.arange(N, dtype=np.uint64) % pages if how == "in order" else chance.integers(0, pages, N, np.uint64)
    every = np.concatenate([np.arange(pages, dtype=np.uint64), page])
    line = chance.integers(0, 64, len(every), np.uint64) << np.uint64(6)
    return fastmmu.trace.Trace.from_arrays((every << np.uint64(12)) + line + np.uint64(0x1000_0000_0000))


def row(size: int, how: str) -> list[tuple[float, float]]:
    """Cycles of a walk, by the model and by caches: natively, over EPT, each with frames in a row, and shuffled."""
    made = trace(size, how)
    found = []
    for mmu in ("native", "ept"):
        for frames in FRAMES:
            config = fastmmu.Config(mmu=mmu, vpid=mmu == "ept", premapped=True, memory="16G", frames=frames)
            shares = fastmmu.simulate(made, config, warm_up=size * 256)
            result = fastmmu.simulate(made, config.replace(caches="skylake"), warm_up=size * 256)
            assert result.caches is not None
            simulated = result.caches.walk_cycles / result.caches.walks
            found.append((shares.walk_cycles / shares.counters["walks"], simulated))
    return found


def lines(sizes: tuple[int, ...] = SIZES) -> Iterator[str]:
    """The table."""
    for size in sizes:
        for how in HOW:
            cells = " | ".join(f"{model:.1f} | {simulated:.1f}" for model, simulated in row(size, how))
            yield f"| {size} MB | {how} | {cells} |"


if __name__ == "__main__":
    for line in lines(tuple(map(int, sys.argv[1:])) or SIZES):
        print(line, flush=True)
