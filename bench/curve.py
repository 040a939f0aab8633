"""One pass for all sizes against twelve simulations: times, and the largest difference in misses.

    python bench/curve.py [TRACE ...]

Traces (default: the bundled ones) are read into memory first, so that both sides are timed without parsing.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import fastmmu
from fastmmu.study import tlb_curve
from fastmmu.trace import Trace, bundled

STLB = ("64/4", "128/4", "256/4", "512/4", "1024/8", "1536/12", "2048/16", "3072/24", "64/fa", "256/fa", "1024/fa",
        "1536/fa")  # fmt: skip


def in_memory(name: str) -> Trace:
    trace = fastmmu.read_trace(bundled().get(name, name))
    batches = list(trace.batches())
    op, size, addr = (np.concatenate([getattr(b, column) for b in batches]) for column in ("op", "size", "addr"))
    return Trace.from_arrays(addr, op, size, name=trace.name)


def main() -> None:
    heads = ("events", 12), ("curves s", 10), ("12 runs s", 11), ("ratio", 7), ("sampled s", 11), ("differs by", 12)
    print(f"{'trace':<16}" + "".join(f"{title:>{width}}" for title, width in heads))
    for name in sys.argv[1:] or bundled():
        trace = in_memory(name)
        found = tlb_curve(trace, l2_sets=(16, 32, 64, 128), l1_sets=())
        sampled = tlb_curve(trace, sample=0.1)
        worst, begin = 0.0, time.perf_counter()
        for stlb in STLB:
            counted = fastmmu.simulate(trace, fastmmu.Config(premapped=True, stlb=stlb)).counters
            worst = max(worst, abs(found.misses("l2", stlb)[0] - counted["tlb_misses"]))
        runs = time.perf_counter() - begin
        ratio = runs / found.seconds
        print(f"{trace.name:<16}{trace.total:>12,}{found.seconds:>10.2f}{runs:>11.2f}{ratio:>7.1f}"
              f"{sampled.seconds:>11.2f}{worst:>12.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
