"""Enumeration of tables that mean harm: time and memory stay bounded."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import pytest

import fastmmu
from fastmmu import Eptp, Fault, GuestState
from tests.support.address_spaces import tables

SELF = 0x1067
NBYTES = 0x10_0000
LONG = GuestState(cr3=0x1000)
FIVE = GuestState(cr3=0x1000, cr4=0x10A0)
RESERVED = 0x2067 | 1 << 51
NARROW = {"maxphyaddr": 40}


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A test fails, and does not hang, where a bound is lost."""

    def late(*_: object) -> None:
        raise TimeoutError("enumeration takes time without bound")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_table_that_is_all_of_its_levels() -> None:
    """2^36 mappings out of one page, with 5 levels 2^45."""
    memory = tables(NBYTES, (1, SELF))
    for state, total in ((LONG, 1 << 36), (FIVE, 1 << 45)):
        rows = fastmmu.mappings(memory, state, limit=100_000)
        assert (len(rows), rows.truncated) == (100_000, True)
        assert np.array_equal(rows.va, np.arange(100_000, dtype=np.uint64) << np.uint64(12))
        assert set(rows.pa.tolist()) == {0x1000}
        parts = fastmmu.iter_mappings(memory, state, chunk=1000)
        assert [next(parts).va[-1] for _ in range(3)] == [999 << 12, 1999 << 12, 2999 << 12]
        last = fastmmu.mappings(memory, state, start=(1 << 64) - 0x3000)
        assert last.va.tolist() == [(1 << 64) - step for step in (0x3000, 0x2000, 0x1000)]
        middle = fastmmu.mappings(
            memory, state, start=(total >> 1 << 12) - 0x1000, stop=(1 << 64) - (total >> 1 << 12) + 1
        )
        assert middle.va.tolist() == [(total >> 1 << 12) - 0x1000, (1 << 64) - (total >> 1 << 12)]


def test_too_many_rows_are_an_error_that_names_the_remedy() -> None:
    with pytest.raises(fastmmu.OutOfMemoryError, match=r"more than 16777216 mappings.*limit=.*iter_mappings"):
        fastmmu.mappings(tables(NBYTES, (1, SELF)), LONG)
    with pytest.raises(fastmmu.OutOfMemoryError, match=r"iter_ept_mappings"):
        fastmmu.ept_mappings(tables(NBYTES, (1, 0x2007), (2, 0x3007), (3, 0x4007), (4, 0x5037)), Eptp(0x101E))


def test_empty_tables_under_full_ones() -> None:
    memory = tables(NBYTES, (1, 0x2067), (2, 0x3067), (3, 0x4067))
    rows = fastmmu.mappings(memory, LONG)
    assert (len(rows), rows.skipped) == (0, {})
    memory.write64(0x4FF8, 0x9067)  # one page in each of 2^27 page tables
    rows = fastmmu.mappings(memory, LONG, limit=5)
    assert rows.va.tolist() == [(512 * i + 511) << 12 for i in range(5)]


def test_faults_are_counted_where_they_are_too_many_to_visit() -> None:
    memory = tables(NBYTES, (1, 0x2067), (2, 0x3067), (3, 0x4067), (4, RESERVED))
    rows = fastmmu.mappings(memory, LONG.replace(**NARROW))
    assert rows.skipped == {Fault.PAGE_FAULT: 1 << 36}
    assert rows.faults.va.tolist() == [i << 12 for i in range(4096)]
    rows = fastmmu.mappings(memory, LONG.replace(**NARROW), start=0x1000, stop=(1 << 64) - 0x1000)
    assert rows.skipped == {Fault.PAGE_FAULT: (1 << 36) - 2}
    nowhere = tables(NBYTES, (1, 0x2067), (2, 0x3067), (3, NBYTES | 0x67))
    assert fastmmu.mappings(nowhere, LONG).skipped == {Fault.BUS: 1 << 27}


def test_one_page_at_the_very_end() -> None:
    """Barren tables before it must not cost a visit each."""
    memory = tables(NBYTES, (1, [0x2067] * 511 + [0x5067]), (2, 0x3067), (3, 0x4067), (4, RESERVED))
    for frame, entry in ((5, 0x6067), (6, 0x7067), (7, 0x9067)):
        memory.u64[(frame << 9) + 511] = entry
    (row,) = fastmmu.mappings(memory, LONG.replace(**NARROW))
    assert (row.va, row.pa) == ((1 << 64) - 0x1000, 0x9000)
    parts = fastmmu.iter_mappings(memory, LONG.replace(**NARROW), chunk=1)
    assert [part.va.tolist() for part in parts] == [[(1 << 64) - 0x1000]]
    assert parts.skipped == {Fault.PAGE_FAULT: 511 << 27}


def test_large_pages_over_an_ept_without_pages() -> None:
    """2^18 pages of 1 GB, each over 2^18 entries of the EPT that map nothing."""
    guest = ((1, 0x2067), (2, 0x0000_0000_00E7))
    ept = ((9, 0xA007), (10, 0xB007), (11, 0xC007))
    for entry, fault in ((0, Fault.EPT_VIOLATION), (2, Fault.EPT_MISCONFIG)):
        memory = tables(NBYTES, *guest, *ept, (12, entry))
        memory.u64[9 << 9] = 0xA007
        memory.u64[10 << 9] = 0xD007
        for frame, value in ((13, 0xE007), (14, 0)):  # the guest's tables lie in the first 2 MB
            memory.u64[frame << 9 : (frame + 1) << 9] = value
        memory.u64[(14 << 9) + 1 : (14 << 9) + 3] = [0x1037, 0x2037]
        memory.u64[13 << 9 : (13 << 9) + 2] = [0xE007, 0xC007]
        memory.u64[2 << 9 : 3 << 9] = 0x4000_00E7  # guest-physical 1 GB, under EPT tables 11 and 12
        rows = fastmmu.mappings(memory, LONG, Eptp(0x901E))
        holes = 512 if fault == Fault.EPT_VIOLATION else 512 * 512
        assert (len(rows), rows.skipped) == (0, {fault: 512 * 512 * holes})


def test_many_guest_pages_over_one_hole() -> None:
    memory = tables(
        NBYTES, (1, 0x2067), (2, 0x3067), (3, 0x4067), (4, 0x40_0067), (9, 0xA007), (10, 0xB007), (11, 0xC007)
    )
    memory.u64[12 << 9 : 13 << 9] = (np.arange(512, dtype=np.uint64) << np.uint64(12)) | np.uint64(0x37)
    memory.u64[(11 << 9) + 2] = 0
    rows = fastmmu.mappings(memory, LONG, Eptp(0x901E))
    assert (len(rows), rows.skipped) == (0, {Fault.EPT_VIOLATION: 1 << 36})


def test_an_iterator_may_be_dropped_and_its_memory_kept_alive() -> None:
    parts = fastmmu.iter_mappings(tables(NBYTES, (1, SELF)), LONG, chunk=10)
    assert len(next(parts)) == 10
    assert next(parts).va[0] == 10 << 12
    del parts


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_faults_do_not_depend_on_the_chunk(chunk: int) -> None:
    rng = np.random.default_rng(1)
    leaf = rng.choice(np.array([0, 0x9067, RESERVED, 0x5067], np.uint64), 512)
    memory = tables(NBYTES, (1, 0x2067), (2, 0x3067), (3, [0x4067, 0, 0x5067, RESERVED] * 128), (4, leaf), (5, 0))
    state = LONG.replace(**NARROW)
    whole = fastmmu.mappings(memory, state, stop=1 << 26)
    parts = fastmmu.iter_mappings(memory, state, stop=1 << 26, chunk=chunk)
    assert np.array_equal(np.concatenate(list(parts)), whole)
    assert parts.skipped == whole.skipped
    assert np.array_equal(parts.faults, whole.faults)


def test_a_table_that_was_read_in_part_is_not_barren() -> None:
    """One page directory under each entry; its first page lies before the addresses asked for, the first time."""
    memory = tables(NBYTES, (1, 0x2067), (2, 0x3067), (3, [0x4067] + [0] * 511), (4, [0x9067] + [0] * 511))
    rows = fastmmu.mappings(memory, LONG, start=0x1000, stop=3 << 30)
    assert rows.va.tolist() == [1 << 30, 2 << 30]
    rows = fastmmu.mappings(memory, LONG, start=0x20_0000, stop=(2 << 30) + 1)
    assert rows.va.tolist() == [1 << 30, 2 << 30]
