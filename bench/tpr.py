"""TPR traffic through FlexPriority: a trace of which every fifth event accesses the TPR, and the same without.

    20% TPR    half reads, half writes, nothing pending: no VM exits
    plain      the accesses alone

Processor time, each pass of the one next to a pass of the other; medians of nine. The aim is that the first takes at
most twice the time of the second, event for event.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from fastmmu import Config, Machine
from fastmmu.ops import Op

EVENTS = 2_000_000
PASSES = 9
TPR, SVR = 0x80 << 32, 0xF0 << 32


def traces() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (op, addr)."""
    chance = np.random.default_rng(0)
    addr = (0x40_0000 + chance.integers(0, 64, EVENTS) * 4096 + chance.integers(0, 512, EVENTS) * 8).astype(np.uint64)
    op = chance.integers(0, 2, EVENTS).astype(np.uint8)
    tpr = chance.random(EVENTS) < 0.2
    value = chance.integers(0, 16, EVENTS).astype(np.uint64) << np.uint64(4)
    kind = np.where(chance.random(EVENTS) < 0.5, np.uint8(Op.APIC_WRITE), np.uint8(Op.APIC_READ))
    return {
        "plain": (op, addr),
        "20% TPR": (np.where(tpr, kind, op), np.where(tpr, np.uint64(TPR) | value, addr)),
    }


def seconds(op: np.ndarray, addr: np.ndarray) -> float:
    machine = Machine(Config(mmu="ept", vpid=True, memory="1G", tpr="flexpriority"))
    first = np.array([SVR | 0x1FF], np.uint64)
    machine.run(np.array([Op.APIC_WRITE], np.uint8), np.zeros(1, np.uint8), first)
    size = np.ones(len(op), np.uint8)
    machine.run(op[:5000], size[:5000], addr[:5000])
    begin = time.process_time()
    machine.run(op, size, addr)
    return time.process_time() - begin


def main() -> None:
    columns = traces()
    passes = [{name: seconds(*columns[name]) for name in columns} for _ in range(PASSES)]
    for name in columns:
        print(f"{name:>8}: {EVENTS / statistics.median(each[name] for each in passes) / 1e6:6.1f} M events/s")
    ratios = sorted(each["20% TPR"] / each["plain"] for each in passes)
    print(f"   ratio: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}; aim: at most 2)")


if __name__ == "__main__":
    main()
