"""Compare schemes from Python: python examples/compare.py [TRACE]

Without a trace it makes one up: a program that walks over 64 MB again and again, a page a step, with a system call now
and then. That is the worst case for a TLB without tags: each VM exit empties it.
"""

from __future__ import annotations

import sys

import numpy as np

from fastmmu import Op, Trace, read_trace
from fastmmu.report import comparison
from fastmmu.study import compare


def made_up(accesses: int = 400_000, pages: int = 1024) -> Trace:
    """A stride of a page over `pages` pages; every 500th event is an instruction that exits."""
    op = np.full(accesses, Op.READ, np.uint8)
    addr = np.arange(accesses, dtype=np.uint64) % pages * 4096 + 0x10_0000_0000
    op[499::500] = Op.EXIT
    addr[499::500] = 10  # CPUID
    return Trace.from_arrays(addr, op, name="stride")


def main() -> None:
    trace = read_trace(sys.argv[1]) if len(sys.argv) > 1 else made_up()
    results = compare(trace, schemes=("native", "ept", "ept+vpid"), pages=("4k", "2m"))
    print(comparison(results))

    without, with_vpid = results[1], results[2]
    exits = without.counters["vm_exits"]
    misses = without.counters["tlb_misses"] - with_vpid.counters["tlb_misses"]
    print(f"\nEach of {exits} VM exits without VPID cost {misses / exits:.0f} refills.")


if __name__ == "__main__":
    main()
