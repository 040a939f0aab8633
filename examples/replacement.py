"""Misses by policy of replacement, on the bundled traces: the table of docs/replacement.md.

python examples/replacement.py
"""

from __future__ import annotations

import fastmmu
from fastmmu.trace import bundled, read_trace

POLICIES = ("lru", "plru", "random:1", "srrip", "chirp")
ARRAYS = ("64/4", "128/8", "256/8")


def main() -> None:
    """A row a trace and second level; native, skylake's first level, true LRU there."""
    print("    " + "trace   level 2" + "".join(f"{policy:>10}" for policy in POLICIES))
    for name, trace in ((name, read_trace(path)) for name, path in bundled().items()):
        for stlb in ARRAYS:
            found = []
            for policy in POLICIES:
                config = fastmmu.Config(premapped=True, stlb=stlb, replacement=f"lru,{policy}")
                found.append(fastmmu.simulate(trace, config).counters["tlb_misses"])
            print(f"    {name:<8}{stlb:<7}" + "".join(f"{misses:>10}" for misses in found))


if __name__ == "__main__":
    main()
