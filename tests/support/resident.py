"""What simulated memory takes of the host's: a program that measures itself, run in a process of its own.

    python -m tests.support.resident [DIRECTORY OF A RECORDED GUEST ...]

It prints JSON: for each measurement KB that became resident, and KB of huge pages among them.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastmmu
from fastmmu.image import from_pages, open_raw, read_guest

ROLLUP = Path("/proc/self/smaps_rollup")
ROOT = Path(__file__).parents[2]
Sizes = dict[str, tuple[int, int]]


def kilobytes(*names: str) -> list[int]:
    fields = dict(line.split(":") for line in ROLLUP.read_text().splitlines()[1:])
    return [int(fields[name].split()[0]) for name in names]


def grown(make: Callable[[], Any]) -> tuple[int, int]:
    """(resident, of that in huge pages): what it takes while its result is held."""
    gc.collect()
    before = kilobytes("Rss", "AnonHugePages")
    made = make()
    after = kilobytes("Rss", "AnonHugePages")
    del made
    return after[0] - before[0], after[1] - before[1]


def touched(nbytes: int, stride: int, n: int) -> fastmmu.PhysicalMemory:
    memory = fastmmu.PhysicalMemory(nbytes)
    for i in range(n):
        memory.u64[i * stride >> 3] = 1
    return memory


def tables(apart: int, n: int) -> fastmmu.PhysicalMemory:
    """A root, a PDPT, PDs, and n page tables, each `apart` bytes behind the one before."""
    memory = fastmmu.PhysicalMemory(0x1_0000 + n * apart)
    memory.write64(0x1000, 0x2067)
    for i in range(-(-n // 512)):
        memory.write64(0x2000 + 8 * i, 0x3000 + (i << 12) | 0x67)
    for i in range(n):
        table = 0x1_0000 + i * apart
        memory.write64(0x3000 + 8 * i, table | 0x67)
        memory.u64[table >> 3 : table + 0x1000 >> 3] = 0x1000_0067
    return memory


def translated(apart: int, n: int, times: int) -> fastmmu.PhysicalMemory:
    memory = tables(apart, n)
    va = np.arange(0, n << 21, n << 4, dtype=np.uint64) & ~np.uint64(0xFFF)
    out = fastmmu.translate(memory, fastmmu.GuestState(cr3=0x1000), va)
    for _ in range(times):
        fastmmu.translate(memory, fastmmu.GuestState(cr3=0x1000), va, out=out)
    assert not out.fault.any()
    assert (out.pa == 0x1000_0000).all()
    return memory


def image(pages: int, every: int) -> fastmmu.PhysicalMemory:
    contents = np.full((pages, 4096), 7, np.uint8)
    memory = from_pages(np.arange(0, pages * every, every), contents)
    assert memory.u8[4096 * every * (pages - 1)] == 7
    return memory


def file_image(path: Path) -> fastmmu.PhysicalMemory:
    memory = open_raw(path)
    assert memory.read64(0) == 0
    return memory


def machines() -> Sizes:
    found = {}
    for mmu, kvm in (("native", "slides"), ("ept", "slides"), ("ept", "6.1"), ("shadow", "slides"), ("shadow", "6.1")):
        config = fastmmu.Config(mmu=mmu, kvm=kvm, memory="4G")  # type: ignore[arg-type]
        for _ in range(3):  # what the heap keeps of earlier ones is not taken again, nor written with zeros
            size = grown(lambda config=config: fastmmu.Machine(config))  # type: ignore[misc]
        found[f"machine, {mmu}, {kvm}"] = size
    return found


def run(pages: int) -> fastmmu.Machine:
    """A guest that touches so many pages of 4 KB, 16 of them in each of its tables."""
    machine = fastmmu.Machine(fastmmu.Config(mmu="ept", memory="4G"))
    addresses = np.arange(0, pages << 17, 1 << 17, dtype=np.uint64)
    machine.run(np.zeros(pages, np.uint8), np.ones(pages, np.uint8), addresses)
    return machine


def main(guests: list[str]) -> None:
    machines()
    found: Sizes = {
        "sparse": grown(lambda: touched(1 << 36, 4 << 20, 1000)),
        "sparse, small": grown(lambda: touched(1 << 30, 1 << 20, 1000)),
        "nothing": grown(lambda: fastmmu.PhysicalMemory(1 << 40)),
        "tlb": grown(fastmmu.TLB),
        **machines(),
        "few tables": grown(lambda: run(16 * 60)),
        "many tables": grown(lambda: run(16 * 600)),
        "sparse tables, walked": grown(lambda: translated(1 << 21, 64, 20)),
        "dense tables": grown(lambda: tables(1 << 12, 2048)),
        "dense tables, walked": grown(lambda: translated(1 << 12, 2048, 20)),
        "sparse image": grown(lambda: image(1000, 128)),
        "dense image": grown(lambda: image(4096, 1)),
    }
    for guest in guests:
        pages = np.load(Path(guest) / "mem.npz")["pfn"].size
        read_guest(guest)
        size = grown(lambda guest=guest: read_guest(guest).memory)  # type: ignore[misc]
        found[f"guest {Path(guest).name}, {pages}"] = size
    print(json.dumps(found))


def measured(guests: list[Path]) -> Sizes:
    """Of a process of its own."""
    command = [sys.executable, "-m", "tests.support.resident", *map(str, guests)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: (size[0], size[1]) for name, size in json.loads(done.stdout).items()}


if __name__ == "__main__":
    main(sys.argv[1:])
