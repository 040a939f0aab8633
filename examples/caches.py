"""What a walk costs, by shares and by data caches that are simulated: the table of docs/caches-in-runs.md."""

from __future__ import annotations

import numpy as np

import fastmmu

N = 200_000


def addresses(pages: int, sequential: bool) -> np.ndarray:
    """Reads of one line of each page, page by page, or of pages drawn by chance."""
    chance = np.random.default_rng(1)
    page = np.arange(N, dtype=np.uint64) % pages if sequential else chance.integers(0, pages, N, np.uint64)
    return (page << np.uint64(12)) + np.uint64(0x1000_0000_0000)


def main() -> None:
    for mmu in ("native", "ept"):
        for size in (16, 256, 4096):
            for how in ("sequential", "uniform"):
                trace = addresses(size * 256, how == "sequential")
                config = fastmmu.Config(mmu=mmu, premapped=True)
                shares = fastmmu.simulate(trace, config)
                caches = fastmmu.simulate(trace, config.replace(caches="skylake"))
                walks = shares.counters["walks"]
                model = shares.cycles_by["guest_walk"] + shares.cycles_by.get("ept_walk", 0)
                found = caches.caches.walk_cycles
                print(f"    {mmu:7}{size:5} MB  {how:11}{model / walks:8.1f}{found / walks:8.1f}")


if __name__ == "__main__":
    main()
