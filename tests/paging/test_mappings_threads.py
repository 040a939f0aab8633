"""Mappings in several threads: rows, faults and counts are those of one, whatever the tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastmmu
from bench.spaces import Space
from fastmmu.errors import ConfigError, OutOfMemoryError
from tests.support.random_tables import RandomTables


def same(memory: fastmmu.PhysicalMemory, state: fastmmu.GuestState, eptp: Any, threads: int, **given: Any) -> int:
    """How many rows."""
    one = fastmmu.mappings(memory, state, eptp, **given)
    several = fastmmu.mappings(memory, state, eptp, threads=threads, **given)
    assert np.array_equal(one, several)
    assert (one.truncated, one.skipped) == (several.truncated, several.skipped)
    assert np.array_equal(one.faults, several.faults)
    return len(one)


@pytest.mark.parametrize("nested", [False, True], ids=["guest", "nested"])
@pytest.mark.parametrize("mode", ["32", "pae", "4", "5"])
def test_of_random_tables(mode: str, nested: bool) -> None:
    rows = []
    for seed in range(6):
        tables = RandomTables(seed, mode, nested)
        state = tables.state
        if mode == "pae":
            state = fastmmu.load_pdpte_registers(tables.mem, state, eptp=tables.eptp)
            if not isinstance(state, fastmmu.GuestState):
                continue
        start = 0 if seed % 2 else 0x1234_5000
        for stop, threads in ((start + (200 << 20), 2), (start + (900 << 20), 3), (start + (900 << 20), 200)):
            rows.append(same(tables.mem, state, tables.eptp, threads, start=start, stop=stop))
    assert sum(rows) > 500_000 or nested


@pytest.mark.parametrize("nested", [False, True], ids=["guest", "nested"])
def test_of_a_program(nested: bool) -> None:
    at = Space(300_000, nested)
    assert same(at.memory, at.state, at.eptp, 2) == 300_000
    assert same(at.memory, at.state, at.eptp, 4, limit=300_000) == 300_000
    assert same(at.memory, at.state, at.eptp, 4, limit=299_999) == 299_999  # one thread's, which knows what is cut
    va = int(at.in_order[70_001])
    assert same(at.memory, at.state, at.eptp, 3, start=va + 1, stop=va + (123_456 << 12) + 1) == 123_457


def test_rows_that_the_ept_lacks() -> None:
    """The rows of a part are as many as its page tables have, at most; those behind it move up."""
    at = Space(200_000, True)
    words, rng = at.memory.u64, np.random.default_rng(1)
    data = words >> np.uint64(12) >= np.uint64(len(words) >> 9)  # tables alone are in memory
    leaves = np.flatnonzero((words & np.uint64(0xFFF) == np.uint64(0x37)) & data)
    words[rng.choice(leaves, len(leaves) // 3, replace=False)] = 0
    rows = same(at.memory, at.state, at.eptp, 4)
    assert rows == 200_000 - len(leaves) // 3


def test_huge_address_spaces_are_refused_as_by_one_thread() -> None:
    tables = RandomTables(3, "4", False, clean=True)
    messages = set()
    for threads in (1, 2):
        with pytest.raises(OutOfMemoryError, match="limit=") as refused:
            fastmmu.mappings(tables.mem, tables.state, threads=threads)
        messages.add(str(refused.value))
    assert len(messages) == 1
    for bad in (0, -1, 1 << 70):
        with pytest.raises(ConfigError, match="threads"):
            fastmmu.mappings(tables.mem, tables.state, threads=bad)
