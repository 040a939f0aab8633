"""Traces made by hand, for the tests of the machine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fastmmu import Config, Machine, Op, Trace, read_trace
from fastmmu.trace.bundle import bundled

__all__ = ["ALL_SCHEMES", "distinct_pages", "events", "program", "real_trace", "run", "with_events"]

ALL_SCHEMES = [
    Config(memory="256M"),
    *(Config(mmu=mmu, vpid=vpid, memory="256M") for mmu in ("shadow", "ept") for vpid in (False, True)),
]


def events(*parts: tuple[Op, int] | tuple[Op, Iterable[int]]) -> Trace:
    """A trace of (operation, operand) or (operation, operands) in a row."""
    op: list[int] = []
    addr: list[int] = []
    for code, operand in parts:
        operands = [operand] if isinstance(operand, int) else list(operand)
        op += [code] * len(operands)
        addr += operands
    return Trace.from_arrays(np.array(addr, np.uint64), np.array(op, np.uint8))


def program(n: int, seed: int = 0, pages: int = 200) -> Trace:
    """`n` accesses like those of a program: code in loops, a stack, a heap of which some pages are hot."""
    rng = np.random.default_rng(seed)
    op = rng.choice([Op.FETCH, Op.READ, Op.WRITE, Op.MODIFY], n, p=[0.55, 0.25, 0.15, 0.05]).astype(np.uint8)
    page = np.minimum(rng.zipf(1.3, n) - 1, pages - 1).astype(np.uint64)
    code = 0x40_0000 + (rng.integers(0, 40, n).astype(np.uint64) << 12)
    stack = 0x7FFF_FFFF_0000 - (rng.integers(0, 4, n).astype(np.uint64) << 12)
    heap = 0x5555_5555_5000 + (page << 12)
    data = np.where(rng.random(n) < 0.3, stack, heap)
    addr = np.where(op == Op.FETCH, code, data) + rng.integers(0, 4090, n).astype(np.uint64)
    return Trace.from_arrays(addr, op, rng.choice([1, 4, 8, 16], n).astype(np.uint8))


def with_events(trace: Trace, every: int, *inserted: tuple[Op, int]) -> Trace:
    """`trace` with these events after each `every` events."""
    (batch,) = trace.batches(1 << 30)
    at = np.repeat(np.arange(every, len(batch), every), len(inserted))
    times = len(at) // len(inserted)
    return Trace.from_arrays(
        np.insert(batch.addr, at, np.tile(np.array([operand for _, operand in inserted], np.uint64), times)),
        np.insert(batch.op, at, np.tile(np.array([op for op, _ in inserted], np.uint8), times)),
        np.insert(batch.size, at, 0),
    )


def real_trace(limit: int = 200_000) -> Trace:
    """The first events of a bundled trace; of a made one where none is bundled."""
    for path in bundled().values():
        return read_trace(path).head(limit)
    return program(limit // 4, seed=7)


def run(machine: Machine, trace: Trace) -> npt.NDArray[np.uint64]:
    """Runs the whole trace: guest-physical address of each access, all ones for other events."""
    found = []
    for batch in trace.batches():
        found.append(np.empty(len(batch), np.uint64))
        machine.run(batch.op, batch.size, batch.addr, found[-1])
    return np.concatenate(found)


def distinct_pages(trace: Trace, shift: int = 12) -> int:
    """Pages of 2**shift bytes that the accesses touch, told apart by process."""
    pages: set[tuple[int, int]] = set()
    process = 0
    for batch in trace.batches():
        for op, size, addr in zip(batch.op.tolist(), batch.size.tolist(), batch.addr.tolist(), strict=True):
            if op == Op.SWITCH:
                process = addr
            elif op <= Op.FETCH:
                pages |= {(process, addr >> shift), (process, (addr + max(size, 1) - 1) >> shift)}
    return len(pages)
