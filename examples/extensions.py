"""What stands between the second level and the walk: misses, walks and their references by extension, bundled traces.

`python examples/extensions.py` prints the table of docs/tlb-extensions.md.
"""

from __future__ import annotations

from fastmmu import Config, read_trace, simulate
from fastmmu.trace import bundled

EXTENSIONS = (
    "none", "clustered:8", "coalesced:8", "range:32", "pom:16m", "prefetch:sequential", "prefetch:distance",
    "prefetch:recency", "clustered:8+prefetch:distance",
)  # fmt: skip


def main() -> None:
    for name in ("sqlite", "zstd"):
        for scheme, mmu in (("native", "native"), ("EPT+VPID", "ept")):
            print(f"{name}, {scheme}")
            for extension in EXTENSIONS:
                config = Config(mmu=mmu, vpid=mmu == "ept", stlb="64/4", tlb_extension=extension)
                result = simulate(read_trace(bundled()[name]), config)
                counted, tlb = result.counters, result.tlb.get("extensions", {})
                refs = counted["guest_walk_refs"] + counted["ept_walk_refs"]
                prefetches = tlb.get("prefetch", {}).get("prefetch_walks", 0)
                memory = sum(one["memory_refs"] for one in tlb.values() if isinstance(one, dict))
                row = f"{tlb.get('hits', 0):8,}{counted['walks']:8,}{refs:9,}{memory:8,}{prefetches:8,}"
                print(f"    {extension:30}{row}")


if __name__ == "__main__":
    main()
