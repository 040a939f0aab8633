"""What the guest kernel would shoot down where the Linux of a system trace did: `shootdowns_of_trace.py smp2.rec.zst`.

An operation is what a CPU stored to page tables of processes, and took rights away with, until its own flush (INVLPG,
INVPCID, CR3 without bit 63). It is run on the guest kernel of fastmmu, natively, with as many vCPUs: the pages are
touched, and unmapped or protected as one range, in the address space in which they lie; switches are the trace's.
Beside each stands whether its CPU sent an IPI of vector FBH or FCH after it, and whether another CPU had the address
space loaded. Stores to the kernel's half, and to spaces that the CPU itself has not loaded, are counted alone.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fastmmu import Config, Host
from fastmmu.ops import LAST_ACCESS, Op, RecordOp
from fastmmu.trace.system import SystemTrace

P, RW, PS, XD, FRAME = 1, 2, 0x80, 1 << 63, 0x000F_FFFF_FFFF_F000
CALLS = (0xFB, 0xFC)
FLUSHES = (RecordOp.INVLPG, RecordOp.INVPCID)
READ = (*FLUSHES, RecordOp.CPU, RecordOp.CR3, RecordOp.IPI, RecordOp.TABLE)


class Switch(NamedTuple):
    """A CPU loads other tables."""

    cpu: int
    root: int


class Operation:
    """Pages of an address space, lowest first, and whether they stay mapped, with fewer rights."""

    def __init__(self, cpu: int, root: int, pages: list[int], stays: bool, loaded: bool) -> None:
        self.cpu, self.root, self.pages, self.stays = cpu, root, pages, stays
        self.loaded = loaded  # by another CPU
        self.told = False  # an IPI followed


class Tables:
    """Page tables as they are, and what each of them maps."""

    def __init__(self) -> None:
        self.page: dict[int, list[int]] = {}
        self.roots: set[int] = set()
        self.places: dict[int, list[tuple[int, int, int]]] = {}  # table -> root, its first address, its level
        self.stale = True

    def store(self, at: int, size: int, value: int) -> tuple[int, int, int] | None:
        """Entry before and after, and its number, of a store to a table that is known."""
        table = self.page.get(at & FRAME)
        if table is None:
            return None
        number, shift = (at & 0xFFF) >> 3, (at & 7) * 8
        mask = ((1 << 8 * min(size, 8)) - 1) << shift
        old = table[number]
        table[number] = old & ~mask | value << shift & mask
        self.stale |= (old ^ table[number]) & (FRAME | P | PS) != 0 and any(
            level > 1 for _, _, level in self.places.get(at & FRAME, [(0, 0, 2)])
        )
        return old, table[number], number

    def of(self, table: int) -> list[tuple[int, int, int]]:
        """Where it is used."""
        if self.stale:
            found = defaultdict(list)
            for root in self.roots:
                stack = [(root, 4, 0)]
                while stack:
                    page, level, la = stack.pop()
                    found[page].append((root, la, level))
                    for i, entry in enumerate(
                        self.page.get(page, [])[: 256 if level == 4 else 512] if level > 1 else []
                    ):
                        if entry & P and not entry & PS:
                            stack.append((entry & FRAME, level - 1, la | i << 9 * level + 3))
            self.places, self.stale = dict(found), False
        return self.places.get(table, [])


def lost(old: int, new: int) -> bool:
    """Whether rights are gone."""
    return bool(old & P) and (not new & P or bool((old ^ new) & FRAME) or bool(old & ~new & RW or new & ~old & XD))


def operations(trace: SystemTrace, counts: Counter[str]) -> Iterator[Switch | Operation]:
    """What the CPUs did, in order."""
    tables, cr3, cpu = Tables(), dict[int, int](), 0
    due: defaultdict[int, dict[int, list[tuple[int, bool]]]] = defaultdict(lambda: defaultdict(list))
    last: dict[int, Operation] = {}
    for chunk in trace.records():
        stores = (chunk.rows["flags"] & 1 != 0) & (chunk.rows["op"] <= LAST_ACCESS)
        value, page = iter(chunk.data.tolist()), iter(chunk.pages)
        for row in chunk.rows[stores | np.isin(chunk.rows["op"], READ)].tolist():
            op, size, _, _, aux, _, val = row
            if op <= LAST_ACCESS:
                changed = tables.store(val, size, next(value))
                if changed is None or not lost(*changed[:2]):
                    continue
                old, new, number = changed
                links = [link for link in tables.of(val & FRAME) if link[2] <= 2]
                counts["stores to the kernel's half, or to tables in use nowhere"] += not links
                for root, la, level in links:
                    due[cpu][root].append((la | number << 9 * level + 3, bool(new & P) and not (old ^ new) & FRAME))
            elif op == RecordOp.TABLE:
                tables.page[val & FRAME], tables.stale = next(page).view(np.uint64).tolist(), True
            elif op == RecordOp.CPU:
                cpu = aux
            elif op == RecordOp.IPI:
                counts["IPIs FBH, FCH"] += val & 0xFF in CALLS
                if val & 0xFF in CALLS and cpu in last:
                    last.pop(cpu).told = True
            else:
                before = cr3.get(cpu, 0) & FRAME
                for root, pages in due.pop(cpu, {}).items() if op in FLUSHES or not val >> 63 else ():
                    if root != before:
                        counts["operations on a space that the CPU has not loaded"] += 1
                        continue
                    others = any(value & FRAME == root for other, value in cr3.items() if other != cpu)
                    stays = all(stay for _, stay in pages)
                    last[cpu] = Operation(cpu, root, sorted({la for la, _ in pages}), stays, others)
                    yield last[cpu]
                if op == RecordOp.CR3:
                    cr3[cpu] = val
                    if val & FRAME != before:
                        tables.roots.add(val & FRAME)
                        tables.stale = True
                        yield Switch(cpu, val & FRAME)


def run(host: Host, cpu: int, rows: list[tuple[int, int]]) -> None:
    """Events on a vCPU."""
    op = np.array([op for op, _ in rows], np.uint8)
    host.run(cpu, cpu, op, np.ones(len(rows), np.uint8), np.array([addr for _, addr in rows], np.uint64))


def main() -> None:
    trace, counts = SystemTrace(sys.argv[1]), Counter[str]()
    host = Host([(Config(memory="1G"), len(trace.cpus()))], cpus=len(trace.cpus()))
    found, process = list(operations(trace, counts)), dict[int, int]()
    for each in found:
        if isinstance(each, Switch):
            run(host, each.cpu, [(Op.SWITCH, process.setdefault(each.root, len(process) + 64))])
            continue
        rows: list[tuple[int, int]] = [(Op.WRITE, page) for page in each.pages]
        first, n = each.pages[0], min((each.pages[-1] - each.pages[0] >> 12) + 1, 4096)
        run(host, each.cpu, [*rows, (Op.PROTECT if each.stays else Op.MUNMAP, first | n - 1)])
    done: list[Any] = [each for each in found if isinstance(each, Operation)]
    kinds = Counter((each.loaded, each.told) for each in done)
    for name, n in sorted(counts.items()):
        print(f"{n:8,} {name}")
    print(f"{len(done):8,} operations; by (another CPU has the space, an IPI follows): {dict(kinds)}")
    sent = sum(host.counters(vcpu)["shootdown_ipis"] for vcpu in range(host.vcpus))
    print(f"{sent:8,} IPIs by the guest kernel of fastmmu")


if __name__ == "__main__":
    main()
