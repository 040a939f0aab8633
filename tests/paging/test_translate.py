"""The batch walk says of every address what the walk of that one address says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmmu
from fastmmu import Eptp, Fault, GuestState, PhysicalMemory
from tests.support.random_tables import MODES, RandomTables

ACCESSES = ("r", "w", "rw", "x")


def walks(tables: RandomTables, va: np.ndarray, access: str) -> list[tuple[int, int]]:
    found = (fastmmu.walk(tables.mem, tables.state, la, access=access, eptp=tables.eptp) for la in va.tolist())
    return [(walk.pa, walk.fault.value) for walk in found]


def batch(tables: RandomTables, va: np.ndarray, access: str) -> list[tuple[int, int]]:
    found = fastmmu.translate(tables.mem, tables.state, va, access=access, eptp=tables.eptp)
    return list(zip(found.pa.tolist(), found.fault.tolist(), strict=True))


@pytest.mark.parametrize("ept", [False, True], ids=["native", "nested"])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 32), clean=st.booleans())
def test_equals_the_walk(mode: str, ept: bool, seed: int, clean: bool) -> None:
    tables = RandomTables(seed, mode, ept, clean)
    va = tables.addresses(100)
    before = tables.mem.u8.tobytes()
    for access in ACCESSES:
        assert batch(tables, va, access) == walks(tables, va, access)
    assert tables.mem.u8.tobytes() == before


@pytest.mark.parametrize("ept", [False, True], ids=["native", "nested"])
@pytest.mark.parametrize("mode", MODES)
def test_the_soup_has_every_outcome(mode: str, ept: bool) -> None:
    """The test above compares faults of every kind, and enough addresses that translate."""
    seen: Counter[Fault] = Counter()
    for seed in range(25):
        tables = RandomTables(seed, mode, ept)
        seen.update(Fault(fault) for _, fault in batch(tables, tables.addresses(400), ACCESSES[seed % 4]))
    expected = {Fault.NONE}
    if mode != "none":
        expected |= {Fault.PAGE_FAULT, Fault.BUS}
    if mode in ("4", "5"):
        expected |= {Fault.GENERAL_PROTECTION}
    if ept:
        expected |= {Fault.EPT_VIOLATION, Fault.EPT_MISCONFIG, Fault.BUS}
    assert set(seen) == expected
    assert all(seen[fault] > 20 for fault in expected)
    assert seen[Fault.NONE] > 0.05 * seen.total()


def test_more_regions_than_are_kept() -> None:
    """Few addresses keep few regions, so regions take each other's place within a block and between blocks."""
    for seed in range(6):
        tables = RandomTables(seed, "4", bool(seed % 2), clean=True)
        va = tables.addresses(60)
        index = tables.rng.integers(0, 512, (3, 60)).astype(np.uint64)
        va = va & np.uint64(0xFFF) | index[0] << 12 | index[1] << 21 | index[2] << 30
        assert len(np.unique(va >> np.uint64(21))) > 50
        assert batch(tables, va, "r") == walks(tables, va, "r")


# ---- the guest's A and D flags under an EPT without them ----------------------------------------------------------


def read_only_tables(upper_a: str, ad: bool) -> Iterator[tuple[int, int, PhysicalMemory, GuestState, Eptp]]:
    """All combinations of A in the PDE, A and D in the PTE and W on the tables: (flags, writable, memory ...)."""
    for flags in range(8):
        for writable in (0, 2):
            mem = PhysicalMemory(12 << 12)
            u64 = mem.u64
            for frame in (1, 2):
                u64[frame << 9] = frame + 1 << 12 | 0x27
            u64[3 << 9] = 4 << 12 | 7 | (flags & 1) << 5
            u64[4 << 9] = 5 << 12 | 7 | (flags >> 1 & 1) << 5 | (flags >> 2 & 1) << 6
            for frame in (6, 7, 8):
                u64[frame << 9] = frame + 1 << 12 | 7
            for page in range(6):
                u64[(9 << 9) + page] = page << 12 | 0x35 | (2 if page == 5 else writable)
            yield flags, writable, mem, GuestState(cr3=1 << 12, upper_a=upper_a), Eptp(6 << 12 | ad << 6 | 0x1E)


@pytest.mark.parametrize("upper_a", ["eager", "lazy"])
@pytest.mark.parametrize("ad", [False, True])
def test_flags_that_cannot_be_set(upper_a: str, ad: bool) -> None:
    """A guest table mapped read-only: the walk fails where it would have to set a flag (ept.md §4, §6)."""
    va = np.array([0x123, 0x1123, 0x456], np.uint64)  # the page 0x1000 is not present
    seen = set()
    for flags, writable, mem, state, eptp in read_only_tables(upper_a, ad):
        for access in ACCESSES:
            found = fastmmu.translate(mem, state, va, access=access, eptp=eptp)
            single = [fastmmu.walk(mem, state, la, access=access, eptp=eptp) for la in va.tolist()]
            assert found.pa.tolist() == [walk.pa for walk in single]
            assert found.fault.tolist() == [walk.fault for walk in single]
            need = 7 if access in ("w", "rw") else 3
            allowed = bool(writable) or (not ad and flags & need == need)
            assert (found.fault[0] == Fault.NONE) == allowed
            seen.add((allowed, Fault(found.fault[1])))
    assert (True, Fault.PAGE_FAULT) in seen
    # whether the flags of upper entries are asked for before the PTE is judged (paging.md §6)
    assert ((False, Fault.EPT_VIOLATION) in seen) == (ad or upper_a == "eager")


# ---- chosen cases ---------------------------------------------------------------------------------------------


def test_large_pages_and_results_outside_memory() -> None:
    mem = PhysicalMemory(8 << 12)
    mem.u64[1 << 9] = 2 << 12 | 7
    mem.u64[2 << 9] = 3 << 12 | 7
    mem.u64[(2 << 9) + 1] = 0x7_C000_0000 | 0x87  # 1G
    mem.u64[3 << 9] = 4 << 12 | 7
    mem.u64[(3 << 9) + 1] = 0xABC_DE20_0000 | 0x87  # 2M
    mem.u64[4 << 9] = 0xF_FFFF_FFFF_F000 | 7
    va = np.array([0xFFF, 0x20_0000, 0x3F_FFFF, 0x4000_0000, 0x7FFF_FFFF, 0x5234_5678], np.uint64)
    found = fastmmu.translate(mem, GuestState(cr3=0x1000), va)
    assert found.fault.tolist() == [0] * 6
    assert [hex(pa) for pa in found.pa.tolist()] == [
        "0xfffffffffffff", "0xabcde200000", "0xabcde3fffff", "0x7c0000000", "0x7ffffffff", "0x7d2345678",
    ]  # fmt: skip


def test_a_table_outside_memory_is_a_matter_of_its_addresses() -> None:
    mem = PhysicalMemory((4 << 12) + 8)  # of the page table at 0x4000 only the first entry
    for frame in (1, 2, 3):
        mem.u64[frame << 9] = frame + 1 << 12 | 7
    mem.u64[4 << 9] = 0x9000 | 7
    mem.u64[(3 << 9) + 1] = 0x100_0000 | 7
    va = np.array([0x10, 0x1010, 0x20_0010, 0x20], np.uint64)
    found = fastmmu.translate(mem, GuestState(cr3=0x1000), va)
    assert found.fault.tolist() == [0, Fault.BUS, Fault.BUS, 0]
    assert found.pa.tolist() == [0x9010, 2**64 - 1, 2**64 - 1, 0x9020]


def test_an_ept_table_that_lies_in_memory_in_part() -> None:
    buffer = np.full(6 << 9, 7, np.uint64)  # behind memory: entries that look good
    mem = PhysicalMemory.from_array(buffer[: (4 << 9) + 1])
    mem.u64[:] = 0
    for frame in (1, 2, 3):
        mem.u64[frame << 9] = frame + 1 << 12 | 7
    mem.u64[4 << 9] = 0x9000 | 7
    no_paging = GuestState(cr0=0x31, cr4=0, efer=0)
    found = fastmmu.translate(mem, no_paging, [0x10, 0x1010, 0x20_0010, 0x20], eptp=0x101E)
    assert found.fault.tolist() == [0, Fault.BUS, Fault.EPT_VIOLATION, 0]
    assert found.pa.tolist() == [0x9010, 2**64 - 1, 2**64 - 1, 0x9020]


def test_pae_registers_that_cannot_be_loaded() -> None:
    """No PDPTE registers, no translation: a reserved bit in the PDPT is a #GP of every address (paging.md §3.2)."""
    mem = PhysicalMemory(4 << 12)
    mem.u64[0] = 1 << 12 | 3
    state = GuestState(cr0=0x8000_0031, cr4=0x20, efer=0)
    found = fastmmu.translate(mem, state, np.zeros((2, 3), np.uint64))
    assert found.fault.tolist() == [[Fault.GENERAL_PROTECTION] * 3] * 2
    assert found.pa.tolist() == [[2**64 - 1] * 3] * 2
