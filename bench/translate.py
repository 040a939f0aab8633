"""`fastmmu.translate` against the yardstick's walks: same addresses, same run, nanoseconds per address, median.

    python bench/translate.py [--addresses N] [--runs R] [--pages P ...]

Memories of 512, 65,536 and 2,000,000 pages: sequential linear addresses mapped by 4K pages to shuffled frames, looked
up in random order. "nested": the same under an EPT of 4K pages that maps the guest's tables to shuffled frames too.
The two sides take turns; a run is the best of some passes on either side. Every result is compared with the
yardstick's. Target: at most 1.5 times the yardstick's scalar walk.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import fastmmu

sys.path.insert(0, str(Path(__file__).parent))
import yardstick

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
LEAST = 600_000  # a run is the best of as many passes as look up so many addresses, at least 3
GUEST = 0x67  # P, R/W, U/S, A, D
EPT = 0x37  # R, W, X, write-back
BASE = 0x7F00_0000_0000 >> 12


class Space(NamedTuple):
    words: U64  # physical memory; only tables are in it
    cr3: int
    eptp: fastmmu.Eptp | None


def table_count(pages: int) -> int:
    return 1 + sum(-(-pages // (1 << bits)) + 1 for bits in (9, 18, 27))


def map_pages(words: U64, number: I64, leaf: I64, upper: int, own: I64, host: I64) -> int:
    """A 4-level table that maps page `number[i]` (ascending) by the entry `leaf[i]`; its root's address.

    Table pages are taken one after the other: `own[k]` is the k-th's frame in the address space that the table is
    of, `host[k]` where it lies in memory.
    """
    table, prefix, used = np.zeros(1, np.int64), np.zeros(1, np.int64), 1
    for shift in (27, 18, 9, 0):
        below = np.unique(number >> shift)
        parent = table[np.searchsorted(prefix, below >> 9)]
        table, prefix = np.arange(used, used + len(below)), below
        used += len(below) if shift else 0
        value = own[table] << 12 | upper if shift else leaf
        words[host[parent] * 512 + (below & 511)] = value.astype(np.uint64)
    return int(own[0]) << 12


def build(pages: int, nested: bool, rng: np.random.Generator) -> Space:
    tables = table_count(pages)  # the guest's: guest frames 0..tables-1; behind them the data
    leaf = (tables + rng.permutation(pages)) << 12 | GUEST
    total = tables + (table_count(pages + tables) if nested else 0)
    words = np.zeros(total * 512, np.uint64)
    host = rng.permutation(total)
    guest = np.arange(tables) if nested else host
    cr3 = map_pages(words, BASE + np.arange(pages), leaf, GUEST, guest, host)
    if not nested:
        return Space(words, cr3, None)
    backing = np.concatenate([host[:tables], total + rng.permutation(pages)]) << 12 | EPT
    root = map_pages(words, np.arange(pages + tables), backing, 7, host[tables:], host[tables:])
    return Space(words, cr3, fastmmu.Eptp(root | 0x1E))


class Yardwalk:
    """The compiled yardstick on the files of one space."""

    def __init__(self, program: Path, space: Space, va: U64, where: Path, passes: int) -> None:
        self.out = where / "out.u64"
        space.words.tofile(where / "mem.u64")
        va.tofile(where / "va.u64")
        name = "walk" if space.eptp is None else "nest"
        files = [str(where / "mem.u64"), hex(space.cr3), str(where / "va.u64"), str(self.out)]
        self.command = [str(program), name, *files, str(passes), hex(space.eptp.value if space.eptp else 0)]

    def run(self) -> tuple[float, float]:
        """ns per address: (scalar, group)."""
        done = subprocess.run(self.command, check=True, capture_output=True, text=True)
        times = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
        return times["scalar"], times["group"]


def run(call: Callable[[], object], passes: int, addresses: int) -> float:
    """ns per address, the best pass."""
    best = float("inf")
    for _ in range(passes):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best / addresses * 1e9


def measure(program: Path, pages: int, addresses: int, nested: bool, runs: int, where: Path) -> list[float]:
    """Medians: yardstick scalar and group, translate with 1 and 2 threads."""
    rng = np.random.default_rng(pages)
    space = build(pages, nested, rng)
    va = (BASE + rng.integers(0, pages, addresses)).astype(np.uint64) << np.uint64(12)
    va |= rng.integers(0, 4096, addresses).astype(np.uint64)
    mem = fastmmu.PhysicalMemory(space.words.nbytes)
    mem.u64[:] = space.words
    state = fastmmu.GuestState(cr3=space.cr3)
    out = fastmmu.translate(mem, state, va, eptp=space.eptp)
    passes = max(3, LEAST // addresses)
    walk = Yardwalk(program, space, va, where, passes)
    times: list[tuple[float, ...]] = []
    for _ in range(runs):
        ours = [
            run(
                lambda threads=threads: fastmmu.translate(  # type: ignore[misc]
                    mem, state, va, eptp=space.eptp, out=out, threads=threads
                ),
                passes,
                addresses,
            )
            for threads in (1, 2)
        ]
        times.append((*walk.run(), *ours))
    if not np.array_equal(out.pa, np.fromfile(walk.out, np.uint64)) or out.fault.any():
        sys.exit(f"{pages} pages: the results differ from the yardstick's")
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--addresses", type=int, default=2_000_000, help="addresses looked up in one call")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pages", type=int, nargs="+", default=[512, 65_536, 2_000_000])
    options = parser.parse_args()
    rows = [(pages, options.addresses) for pages in options.pages]
    rows.insert(0, (options.pages[0], options.pages[0]))  # a short call, where the call itself weighs
    print("ns per address     pages  addresses  yardstick:scalar  group  translate  2 threads  translate/scalar")
    with tempfile.TemporaryDirectory(prefix="fastmmu-bench-") as directory:
        where = Path(directory)
        program = yardstick.build(where)
        for nested in (False, True):
            for pages, addresses in rows:
                scalar, group, one, two = measure(program, pages, addresses, nested, options.runs, where)
                print(
                    f"{'nested' if nested else 'native':14}{pages:10,}{addresses:11,}{scalar:18.2f}{group:7.2f}"
                    f"{one:11.2f}{two:11.2f}{one / scalar:18.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
