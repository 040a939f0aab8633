"""Events for miss-ratio curves, and what a first level sees of them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from fastmmu.ops import Op
from fastmmu.trace import Trace

Events = list[tuple[int, int, int]]  # op, size, addr


def events(seed: int, n: int, pages: int, invalidations: float, switches: float) -> Events:
    """Uses that cluster, and sweeps, so that every distance occurs; code and data share some pages."""
    random, found = Random(seed), []
    for _ in range(n):
        where = random.random()
        page = int(random.expovariate(8 / pages)) % pages if where < 0.7 else random.randrange(pages)
        if where > 0.95:
            page = len(found) // 2 % pages
        op = random.choice([Op.READ, Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH])
        offset = random.choice([0, 0, 0xFF8, 0xFFC])
        if random.random() < invalidations:
            op = random.choice([Op.INVLPG, Op.UNMAP])
        if random.random() < switches:
            op, page, offset = Op.SWITCH, 0, random.randrange(3)
        found.append((op, 8, page << 12 | offset))
    return found


def trace_of(found: Events) -> Trace:
    op, size, addr = zip(*found, strict=True)
    return Trace.from_arrays(addr, op, size, name="made")


def stream(found: Events, ops: tuple[int, ...], pcid: bool) -> Iterator[tuple[str, int]]:
    """What a first level for these operations sees, in the words of the specification."""
    process = 0
    for op, size, addr in found:
        if op == Op.SWITCH:
            process = addr
            if not pcid:
                yield "flush", 0
        elif op > Op.FETCH:
            yield "invalidate", process << 45 | addr >> 12
        elif op in ops:
            yield "access", process << 45 | addr >> 12
            if (addr & 0xFFF) + size > 0x1000:
                yield "access", process << 45 | (addr >> 12) + 1
