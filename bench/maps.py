"""`fastmmu.mappings` of a whole address space, and `fastmmu.translate` of what was asked of recorded guests.

    python bench/maps.py [--runs R] [--pages P ...] [--guests DIRECTORY]

Enumeration has no counterpart in the yardstick. Beside it stands what comes closest: the yardstick's scalar and group
walk of the first address of each mapping, in address order. It is told the addresses, which an enumeration has to
find, and writes 8 bytes an address; a row of `mappings` has 56. The two sides take turns; a run is the best of three
passes. Rows and physical addresses are compared. "nested": over an EPT of 4K pages that maps the guest's tables to
shuffled frames too; there the rows come from two sets of tables. Guests: of FASTMMU_GUESTS, else the sample in tests.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

import fastmmu
from fastmmu.image import Guest, read_guest

sys.path.insert(0, str(Path(__file__).parent))
import yardstick
from translate import U64, Space, Yardwalk, build, run

PASSES = 3
ROOT = Path(__file__).parents[1]


def directories() -> Path:
    for place in (os.environ.get("FASTMMU_GUESTS"), ROOT.parent / "shared" / "guests"):
        if place and Path(place).is_dir():
            return Path(place)
    return ROOT / "tests" / "data" / "guests"


def walked(state: fastmmu.GuestState) -> bool:
    """Does the yardstick walk such tables?"""
    return state.mode.name == "LEVEL_4"


def enumerate_space(
    program: Path | None, mem: fastmmu.PhysicalMemory, state: fastmmu.GuestState, space: Space, runs: int, where: Path
) -> tuple[int, list[float]]:
    """(rows, medians of ns a row: yardstick scalar and group, `mappings`)."""
    rows = fastmmu.mappings(mem, state, space.eptp)
    va: U64 = np.ascontiguousarray(rows.va)
    walk = Yardwalk(program, space, va, where, PASSES) if program else None
    times = []
    for _ in range(runs):
        ours = run(lambda: fastmmu.mappings(mem, state, space.eptp), PASSES, len(rows))
        times.append((*(walk.run() if walk else (float("nan"),) * 2), ours))
    if walk and not np.array_equal(rows.pa, np.fromfile(walk.out, np.uint64)):
        sys.exit("the physical addresses differ from the yardstick's")
    return len(rows), [statistics.median(column) for column in zip(*times, strict=True)]


def line(name: str, rows: int, times: list[float]) -> str:
    scalar, group, ours = times
    return (
        f"{name:24}{rows:10,}{ours * rows / 1e6:10.2f}{ours:9.2f}{scalar:18.2f}{group:8.2f}{ours / scalar:8.2f}"
        f"{ours / group:8.2f}"
    )


def guest_lines(program: Path, guest: Guest, runs: int, where: Path) -> tuple[str, str]:
    """Of `mappings` and of `translate` of the addresses that were asked of its monitor."""
    space = Space(guest.memory.u64, guest.state.cr3, None)
    mine = program if walked(guest.state) else None
    rows, times = enumerate_space(mine, guest.memory, guest.state, space, runs, where)
    va = np.ascontiguousarray(guest.expected["gva"], np.uint64)
    state = guest.state.replace(cpl=0, ac=1)
    out = fastmmu.translate(guest.memory, state, va)
    walk = Yardwalk(program, space, va, where, 20) if mine else None
    lookups = []
    for _ in range(runs):
        ours = run(lambda: fastmmu.translate(guest.memory, state, va, out=out), 20, len(va))
        lookups.append((*(walk.run() if walk else (float("nan"),) * 2), ours))
    if not np.array_equal(out.pa, guest.expected["gpa"]):
        sys.exit(f"{guest.name}: the addresses differ from the recorded ones")
    return line(guest.name, rows, times), line(
        guest.name, len(va), [statistics.median(c) for c in zip(*lookups, strict=True)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pages", type=int, nargs="*", default=[65_536, 2_000_000])
    parser.add_argument("--guests", type=Path, default=directories())
    options = parser.parse_args()
    head = f"{'':10}      ms   ns/row  yardstick:scalar   group  /scalar  /group"
    print(f"{'mappings':24}{head}")
    lookups = []
    with tempfile.TemporaryDirectory(prefix="fastmmu-bench-") as directory:
        where = Path(directory)
        program = yardstick.build(where)
        for nested in (False, True):
            for pages in options.pages:
                space = build(pages, nested, np.random.default_rng(pages))
                mem = fastmmu.PhysicalMemory(space.words.nbytes)
                mem.u64[:] = space.words
                state = fastmmu.GuestState(cr3=space.cr3)
                name = f"{pages:,} pages{', nested' * nested}"
                print(line(name, *enumerate_space(program, mem, state, space, options.runs, where)), flush=True)
        for path in sorted(meta.parent for meta in options.guests.glob("*/meta.json")):
            listed, looked_up = guest_lines(program, read_guest(path), options.runs, where)
            print(listed, flush=True)
            lookups.append(looked_up)
    print(f"{'translate of gva':24}{head.replace('ns/row', 'ns/add')}")
    print("\n".join(lookups))


if __name__ == "__main__":
    main()
