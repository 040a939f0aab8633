"""Programs for the vCPUs of a host, and what each of them sees alone."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu import Config, GuestState, Machine
from fastmmu.ops import Op

__all__ = ["BARE", "NEW", "OLD", "PT", "ROOT", "SMALL", "Columns", "alone", "few", "program", "tables"]

SMALL = Config(mmu="ept", memory="64M", tlb="nehalem", vpid=True)
ROOT, PDPT, PD, PT, OLD, NEW = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000
BARE: dict[str, Any] = {"guest_kernel": False, "state": GuestState(cr3=ROOT)}

Columns = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint64]]


def program(seed: int, n: int = 6000, pages: int = 300, unmaps: float = 0.01) -> Columns:
    """Accesses to pages that come and go."""
    random = Random(seed)
    op = np.array([random.choice([0, 0, 1, 2, 3]) for _ in range(n)], np.uint8)
    op[[random.random() < unmaps for _ in range(n)]] = Op.UNMAP
    page = [random.randrange(pages) if random.random() < 0.5 else random.randrange(20) for _ in range(n)]
    addr = np.array([0x10_0000_0000 + (p << 12) + random.randrange(4088) for p in page], np.uint64)
    return op, np.ones(n, np.uint8), addr


def alone(config: Config, columns: Columns) -> tuple[npt.NDArray[np.uint64], dict[str, Any]]:
    machine, out = Machine(config), np.zeros(len(columns[2]), np.uint64)
    machine.run(*columns, out)
    return out, machine.counters()


def few(n: int = 4, first: int = 0x1000_0000) -> Columns:
    addresses = np.arange(n, dtype=np.uint64) * np.uint64(0x1000) + np.uint64(first)
    return (np.arange(n) & 1).astype(np.uint8), np.full(n, 8, np.uint8), addresses


def tables(machine: Machine, page: int = OLD) -> None:
    """Linear 0 is `page`, 0x1000 the page table."""
    for table, entry in ((ROOT, PDPT), (PDPT, PD), (PD, PT), (PT, page), (PT + 8, PT)):
        machine.guest_memory.write64(table, entry | 0x67)
