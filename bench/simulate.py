"""Cost of one simulated access against the yardstick's two-level TLB: same addresses, same run, median.

    python bench/simulate.py [--accesses N] [--runs R]

Streams: 94 % of the accesses hit the first level; the others go to 1,000 pages, which the second level holds, or to
100,000, where each miss is a walk. Targets: native at most 3 times the yardstick, EPT + VPID at most 4 times.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

import fastmmu

sys.path.insert(0, str(Path(__file__).parent))
from yardstick import build, yardstick_tlb

CONFIG = fastmmu.Config(premapped=True, l1d="64/4", stlb="1536/12")
SCHEMES = {
    "native": CONFIG,
    "shadow+VPID": CONFIG.replace(mmu="shadow", vpid=True),
    "EPT+VPID": CONFIG.replace(mmu="ept", vpid=True),
}


def stream(n: int, cold_pages: int, seed: int = 1) -> npt.NDArray[np.uint64]:
    """n addresses, 94 % in 48 hot pages (3 to a set of 64/4), the others uniform over `cold_pages`."""
    rng = np.random.default_rng(seed)
    hot = rng.integers(0, 48, n)
    cold = 1 << 20 | rng.integers(0, cold_pages, n)
    pages = np.where(rng.random(n) < 0.955, hot, cold).astype(np.uint64)
    return np.uint64(0x10000000000) + (pages << np.uint64(12)) + rng.integers(0, 4096, n).astype(np.uint64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accesses", type=int, default=4_000_000)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    n = args.accesses
    op, size = np.zeros(n, np.uint8), np.ones(n, np.uint8)
    print(f"{'cold pages':>10}  {'scheme':<12}{'L1 hits':>8}{'walks':>8}{'ns/access':>11}{'yardstick':>11}{'ratio':>7}")
    with tempfile.TemporaryDirectory() as where:
        program, path = build(Path(where)), Path(where) / "va.u64"
        for cold in (1_000, 100_000):
            va = stream(n, cold)
            va.tofile(path)
            machines = {name: fastmmu.Machine(config) for name, config in SCHEMES.items()}
            for machine in machines.values():  # builds the tables, warms the TLB
                machine.run(op, size, va)
            before = {name: machine.counters() for name, machine in machines.items()}
            ours: dict[str, list[float]] = {name: [] for name in machines}
            yard = []
            for _ in range(args.runs):
                yard.append(yardstick_tlb(program, path, "16,4,128,12").ns)
                for name, machine in machines.items():
                    start = time.perf_counter()
                    machine.run(op, size, va)
                    ours[name].append((time.perf_counter() - start) / n * 1e9)
            base = statistics.median(yard)
            for name, machine in machines.items():
                now, was = machine.counters(), before[name]
                hits, walks = ((now[k] - was[k]) / (now["accesses"] - was["accesses"]) for k in ("l1d_hits", "walks"))
                ns = statistics.median(ours[name])
                print(f"{cold:>10}  {name:<12}{hits:>8.1%}{walks:>8.2%}{ns:>11.2f}{base:>11.2f}{ns / base:>7.2f}")


if __name__ == "__main__":
    main()
