"""Address spaces of any size: 4-level tables of 4K pages in shuffled frames, native or over an EPT of the same kind."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import fastmmu

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
GUEST = 0x67  # P, R/W, U/S, A, D
EPT = 0x37  # R, W, X, write-back
BASE = 0x7F00_0000_0000 >> 12
"""The first page that is mapped; the others follow it."""


class Tables(NamedTuple):
    words: U64  # physical memory; only tables are in it
    cr3: int
    eptp: fastmmu.Eptp | None
    frames: I64  # of the pages, in the order of their linear addresses


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


def build(pages: int, nested: bool, rng: np.random.Generator) -> Tables:
    tables = table_count(pages)  # the guest's: guest frames 0..tables-1; behind them the data
    data = tables + rng.permutation(pages)
    total = tables + (table_count(pages + tables) if nested else 0)
    words = np.zeros(total * 512, np.uint64)
    host = rng.permutation(total)
    guest = np.arange(tables) if nested else host
    cr3 = map_pages(words, BASE + np.arange(pages), data << 12 | GUEST, GUEST, guest, host)
    if not nested:
        return Tables(words, cr3, None, data)
    backing = np.concatenate([host[:tables], total + rng.permutation(pages)])
    root = map_pages(words, np.arange(pages + tables), backing << 12 | EPT, 7, host[tables:], host[tables:])
    return Tables(words, cr3, fastmmu.Eptp(root | 0x1E), backing[data])


class Space:
    """Pages in a row from BASE on, in memory that the package and the yardstick both read."""

    def __init__(self, pages: int, nested: bool) -> None:
        self.pages, self.nested = pages, nested
        tables = build(pages, nested, np.random.default_rng(pages))
        self.eptp, self.frames = tables.eptp, tables.frames
        self.memory = fastmmu.PhysicalMemory(tables.words.nbytes)
        self.memory.u64[:] = tables.words
        self.state = fastmmu.GuestState(cr3=tables.cr3)

    @property
    def eptp_value(self) -> int | None:
        return None if self.eptp is None else self.eptp.value

    @cached_property
    def in_order(self) -> U64:
        """The first address of each page."""
        return (BASE + np.arange(self.pages)).astype(np.uint64) << np.uint64(12)

    def addresses(self, n: int) -> U64:
        """n mapped addresses in random order."""
        rng = np.random.default_rng(n)
        pages = (BASE + rng.integers(0, self.pages, n)).astype(np.uint64) << np.uint64(12)
        return pages | rng.integers(0, 4096, n).astype(np.uint64)

    def physical(self, va: U64) -> U64:
        """Where mapped addresses lead, by the way the tables were built."""
        frames = self.frames[(va >> np.uint64(12)).astype(np.int64) - BASE].astype(np.uint64)
        return frames << np.uint64(12) | va & np.uint64(4095)
