"""The results of a run as one table in Markdown: work, ours, the yardstick, each peer, and the ratios.

    python -m bench.table bench/results/full.json

Times are nanoseconds an item, medians; a ratio is ours over theirs, the median of the rounds, each of neighbours, and
the quarters of the rounds below and above it.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

PEERS = ("numpy", "unicorn", "kdmp-parser", "drgn", "volatility3", "pycachesim")


def machine(found: dict[str, Any]) -> str:
    """Processor, system and compiler's version of the interpreter; no name of the machine."""
    cpu = found.get("cpu", {})
    brand = cpu.get("brand_raw") or found.get("processor") or "unknown processor"
    return f"{brand}, {cpu.get('count', '?')} cores, {found.get('system')} {found.get('machine')}"


def versions() -> str:
    named = ["Python " + platform.python_version()]
    for name in ("fastmmu", *PEERS):
        try:
            named.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            named.append(f"{name} not installed")
    return ", ".join(named)


def time_of(nanoseconds: float) -> str:
    """With three digits that count: 1.23, 12.3, 123, 1,230."""
    digits = 2 if nanoseconds < 10 else 1 if nanoseconds < 100 else 0
    return f"{nanoseconds:,.{digits}f}"


def rows(benchmarks: list[dict[str, Any]]) -> list[list[str]]:
    found = []
    for bench in sorted(benchmarks, key=lambda bench: (bench["group"], bench["fullname"])):
        extra = bench["extra_info"]
        name = bench["name"].removeprefix("test_").replace("_", " ")
        beside = extra["rivals"] or {"": None}
        for place, (rival, against) in enumerate(beside.items()):
            first = (
                [bench["group"], name, f"{extra['items']:,}", time_of(extra["ns_per_item"])] if not place else [""] * 4
            )
            if against is None:
                found.append([*first, "", "", "", ""])
                continue
            target = f"{extra['target']:g}" if not place and "target" in extra else ""
            ratio, low, high = (f"{against[name]:.3g}" for name in ("ratio", "low", "high"))
            found.append([*first, rival, time_of(against["ns_per_item"]), f"{ratio} ({low} to {high})", target])
    return found


def markdown(report: dict[str, Any]) -> str:
    heads = ["group", "work", "items", "ns an item", "beside", "ns an item", "ratio", "aim"]
    lines = [f"{machine(report['machine_info'])}  ", versions(), ""]
    lines += ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * 2 + "---|" + "---:|" * 3]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows(report["benchmarks"])]
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bench.table RESULTS.json")
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
