"""What stands between the second level and the walk: misses, walks and their references by extension, bundled traces.

`python examples/extensions.py` prints the tables of docs/tlb-extensions.md.
"""

from __future__ import annotations

from fastmmu import Config, read_trace, simulate
from fastmmu.trace import bundled

EXTENSIONS = (
    "none", "clustered:8", "coalesced:8", "range:32", "pom:16m", "prefetch:sequential", "prefetch:distance",
    "prefetch:recency", "prefetch:stride", "prefetch:markov", "clustered:8+prefetch:distance",
)  # fmt: skip
SPLIT = "32/4 + 2m 32/4"
SIZES = (
    (SPLIT, "none"), ("64/4", "none"), ("none", "skewed:64/4"), ("none", "rehash:64/4"),
    ("none", "rehash:64/4:ascending"), ("none", "mix:64/4"),
)  # fmt: skip


def row(name: str, config: Config, label: str) -> str:
    result = simulate(read_trace(bundled()[name]), config)
    counted, tlb = result.counters, result.tlb.get("extensions", {})
    each = [one for one in tlb.values() if isinstance(one, dict)]
    refs = counted["guest_walk_refs"] + counted["ept_walk_refs"]
    memory, walks = (sum(one[what] for one in each) for what in ("memory_refs", "prefetch_walks"))
    cycles = (result.walk_cycles + sum(result.cycles_by.get(cause, 0) for cause in ("stlb", "extensions"))) / 1000
    reads = f"{counted['extension_reads'] / tlb['lookups']:6.2f}" if tlb else "     -"
    mpki = f"{result.mpki:8.2f}" if result.mpki is not None else f"{'-':>8}"
    first = f"    {label:30}{tlb.get('hits', 0):8,}{counted['walks']:8,}{mpki}"
    return f"{first}{refs:9,}{memory:8,}{walks:8,}{reads}{cycles:9,.0f}"


def main() -> None:
    for name in ("sqlite", "zstd"):
        for scheme, mmu in (("native", "native"), ("EPT+VPID", "ept")):
            config = Config(mmu=mmu, vpid=mmu == "ept", stlb="64/4")
            print(f"{name}, {scheme}")
            for extension in EXTENSIONS:
                print(row(name, config.replace(tlb_extension=extension), extension))
    for name in ("sqlite", "zstd"):
        for scheme, mmu in (("native", "native"), ("EPT+VPID", "ept")):
            config = Config(mmu=mmu, vpid=mmu == "ept", pages="thp", l1d="16/4 + 2m 4/4")
            print(f"{name}, {scheme}, transparent huge pages")
            for second, extension in SIZES:
                label = extension if second == "none" else "two arrays" if second == SPLIT else "one array, both sizes"
                print(row(name, config.replace(stlb=second, tlb_extension=extension), label))


if __name__ == "__main__":
    main()
