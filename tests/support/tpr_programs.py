"""Random programs of one vCPU with a local APIC, as events of a trace."""

from __future__ import annotations

import random

import numpy as np

from fastmmu import Machine
from fastmmu.ops import Op

__all__ = ["Events", "program", "run"]

TPR, EOI, SVR, ICR = 0x80, 0xB0, 0xF0, 0x300
Events = list[tuple[Op, int]]


def run(m: Machine, events: Events) -> None:
    op = np.array([op for op, _ in events], np.uint8)
    m.run(op, (op <= 3).astype(np.uint8), np.array([addr for _, addr in events], np.uint64))


def program(chance: random.Random, length: int, *, flag: bool = True) -> Events:
    """TPR traffic, self-IPIs, interrupts of devices, CLI and STI between reads of memory."""
    events: Events = [(Op.APIC_WRITE, SVR << 32 | 0x1FF)]
    for _ in range(length):
        site = chance.randrange(12) << 48
        kind = chance.choices(range(8), [30, 10, 20, 4, 6, 3, 1, 20])[0]
        if kind == 0:
            events.append((Op.APIC_WRITE, site | TPR << 32 | chance.randrange(16) << 4 | chance.choice([0, 0, 5])))
        elif kind == 1:
            events.append((Op.APIC_READ, site | TPR << 32))
        elif kind == 2:
            events.append((Op.DEVICE_INTERRUPT, chance.randrange(16, 256) | chance.choice([0, 0, 0, 256])))
        elif kind == 3:
            events.append((Op.APIC_WRITE, ICR << 32 | 0x4_0000 | chance.randrange(16, 256)))
        elif kind == 4 and flag:
            events.append((Op.INTERRUPT_FLAG, chance.randrange(2)))
        elif kind == 5:
            events.append((Op.APIC_WRITE, EOI << 32))
        elif kind == 6:
            events.append((Op.EXIT, 10))
        else:
            events.append((Op.READ, 0x40_0000 + 4096 * chance.randrange(64)))
    return events
