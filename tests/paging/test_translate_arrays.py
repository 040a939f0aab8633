"""The result of a batch walk does not depend on how its arrays lie in memory, nor on threads and chunks."""

from __future__ import annotations

import array
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmmu
import fastmmu.paging.translate
from fastmmu import BusError, ConfigError, GuestState, PhysicalMemory, StateError
from tests.support.random_tables import RandomTables

ONES = 2**64 - 1


@pytest.fixture(params=[False, True], ids=["native", "nested"])
def tables(request: pytest.FixtureRequest) -> RandomTables:
    return RandomTables(5, "4", request.param)


def translate(tables: RandomTables, va: Any, **options: Any) -> fastmmu.Translation:
    return fastmmu.translate(tables.mem, tables.state, va, eptp=tables.eptp, **options)


def same(one: fastmmu.Translation, other: fastmmu.Translation) -> bool:
    return np.array_equal(one.pa, other.pa) and np.array_equal(one.fault, other.fault)


# ---- threads and chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, 1 << 20])
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_and_chunks(tables: RandomTables, threads: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    va = tables.addresses(2003)
    expected = translate(tables, va)
    monkeypatch.setattr(fastmmu.paging.translate, "CHUNK", chunk)
    assert same(translate(tables, va, threads=threads), expected)


def test_the_work_is_shared(tables: RandomTables, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: started.append(self) or start(self))
    monkeypatch.setattr(fastmmu.paging.translate, "CHUNK", 100)
    va = tables.addresses(1000)
    translate(tables, va, threads=4)
    assert len(started) == 3  # the calling thread is one of the four
    translate(tables, va[:150], threads=4)
    assert len(started) == 4  # no more threads than chunks
    assert not any(thread.is_alive() for thread in started)


def test_threads_that_the_system_refuses(tables: RandomTables, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    va = tables.addresses(1000)
    expected = translate(tables, va)
    monkeypatch.setattr(fastmmu.paging.translate, "CHUNK", 100)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert same(translate(tables, va, threads=4), expected)


# ---- the addresses --------------------------------------------------------------------------------------------


def test_size_does_not_matter(tables: RandomTables) -> None:
    va = tables.addresses(300)
    expected = translate(tables, va)
    for n in (0, 1, 2, 63, 64, 65, 127, 128, 129, 299):
        found = translate(tables, va[:n])
        assert np.array_equal(found.pa, expected.pa[:n])
        assert np.array_equal(found.fault, expected.fault[:n])


def test_layout_does_not_matter(tables: RandomTables, tmp_path: Path) -> None:
    va = tables.addresses(360)
    expected = translate(tables, va)
    assert 0 < np.count_nonzero(expected.fault) < 360
    spread = np.zeros(1080, np.uint64)
    spread[::3] = va
    frozen = va.copy()
    frozen.flags.writeable = False
    odd = np.frombuffer(b"\0" + va.tobytes(), np.uint8)[1:].view("<u8")
    assert not odd.flags.aligned
    np.save(tmp_path / "va.npy", va)
    for other in (
        spread[::3], frozen, odd, va[::-1].copy()[::-1], va.astype(">u8"), va.astype("<i8"), va.astype(">i8"),
        np.load(tmp_path / "va.npy", mmap_mode="r"), va.tolist(), tuple(va.tolist()), array.array("Q", va.tolist()),
        memoryview(va),
    ):  # fmt: skip
        assert same(translate(tables, other), expected)
    for order in ("C", "F"):
        grid = translate(tables, va.reshape(4, 9, 10).copy(order=order))
        assert grid.pa.shape == grid.fault.shape == (4, 9, 10)
        assert np.array_equal(grid.pa.ravel(), expected.pa)
        assert np.array_equal(grid.fault.ravel(), expected.fault)


@pytest.mark.parametrize("make", [int, np.uint64, np.array])
def test_scalar(tables: RandomTables, make: Any) -> None:
    for la in tables.addresses(20).tolist():
        found, walk = translate(tables, make(la)), fastmmu.walk(tables.mem, tables.state, la, eptp=tables.eptp)
        assert found.pa.shape == found.fault.shape == ()
        assert (int(found.pa), int(found.fault)) == (walk.pa, walk.fault)


@pytest.mark.parametrize("empty", [[], (), np.zeros(0, np.uint64), np.zeros((3, 0), np.int32)], ids=repr)
def test_empty(tables: RandomTables, empty: Any) -> None:
    for threads in (1, 2):
        found = translate(tables, empty, threads=threads)
        assert found.pa.shape == found.fault.shape == np.shape(empty)
        assert (found.pa.dtype, found.fault.dtype) == (np.uint64, np.uint8)


def test_lists_of_small_and_large_integers(tables: RandomTables) -> None:
    """NumPy alone would make them floating point."""
    va = tables.addresses(50)
    expected = translate(tables, va)
    mixed = [la - (la >> 63 << 64) if i % 2 else la for i, la in enumerate(va.tolist())]
    assert np.asarray(mixed).dtype == np.float64
    assert same(translate(tables, mixed), expected)
    assert same(translate(tables, np.array(mixed, object)), expected)


def test_signed_addresses_are_sign_extended() -> None:
    mem = PhysicalMemory(8 << 12)
    mem.u64[(1 << 9) + 511] = 2 << 12 | 7
    mem.u64[(2 << 9) + 511] = 3 << 12 | 7
    mem.u64[(3 << 9) + 511] = 0x4000_0000 | 0x87
    state = GuestState(cr3=0x1000)
    for va in (-0x1000, np.int64(-0x1000), np.array([-0x1000], np.int16), [0xFFFF_FFFF_FFFF_F000]):
        found = fastmmu.translate(mem, state, va)
        assert found.pa.ravel().tolist() == [0x401F_F000]


@pytest.mark.parametrize(
    ("va", "says"),
    [
        (1.5, "not 1.5"),
        ([1, 2.0], "not 2.0"),
        (np.zeros(3), "53 bits.*dtype=np.uint64"),
        (np.float64(1), "53 bits"),
        (np.zeros(0), "dtype=np.uint64"),
        (2**64, "64 bits"),
        ([2**64, 1], "64 bits"),
        ([-(2**63) - 1], "64 bits"),
        ([True, 2**64], "not True"),
        (None, "not None"),
        (True, "truth values"),
        (np.zeros(2, bool), "truth values"),
        ("0x1000", "integers"),
        ([1, [2, 3]], "dtype=np.uint64"),
        (np.zeros(2, complex), "integers"),
        (np.zeros(2, "M8[s]"), "integers"),
    ],
    ids=repr,
)
def test_what_is_no_address(tables: RandomTables, va: Any, says: str) -> None:
    with pytest.raises(StateError, match=says):
        translate(tables, va)


# ---- memory ---------------------------------------------------------------------------------------------------


def test_read_only_and_memory_mapped_memory(tables: RandomTables, tmp_path: Path) -> None:
    va = tables.addresses(200)
    expected = translate(tables, va)
    tables.mem.u8.tofile(tmp_path / "mem")
    frozen = tables.mem.u8.copy()
    frozen.flags.writeable = False
    for source in (frozen, np.memmap(tmp_path / "mem", mode="r"), frozen.tobytes()):
        mem = PhysicalMemory.from_array(source)
        assert not mem.writable
        assert same(fastmmu.translate(mem, tables.state, va, eptp=tables.eptp), expected)


def test_roots_outside_memory() -> None:
    mem = PhysicalMemory(4 << 12)
    with pytest.raises(BusError, match="cr3=0x4000"):
        fastmmu.translate(mem, GuestState(cr3=0x4000), [0])
    with pytest.raises(BusError, match="eptp=0x401e"):
        fastmmu.translate(mem, GuestState(cr3=0), [0], eptp=0x401E)
    with pytest.raises(StateError, match="eptp=0x4003"):
        fastmmu.translate(mem, GuestState(cr3=0), [0], eptp=0x4003)
    with pytest.raises(StateError, match="access"):
        fastmmu.translate(mem, GuestState(cr3=0), [0], access="execute")


# ---- out ------------------------------------------------------------------------------------------------------


def test_out(tables: RandomTables) -> None:
    va = tables.addresses(300).reshape(30, 10)
    expected = translate(tables, va)
    aligned, wide, odd = np.zeros((30, 10), np.uint64), np.zeros((60, 20), np.uint64), np.zeros(2401, np.uint8)
    for out in (aligned, wide[::2, 1::2], odd[1:].view(np.uint64).reshape(30, 10), aligned.reshape(10, 30).T):
        found = translate(tables, va, out=out, threads=2)
        assert found.pa is out
        assert same(found, expected)
    assert not wide[1::2].any()
    assert not wide[:, ::2].any()


def test_a_previous_result_is_filled_again(tables: RandomTables) -> None:
    first, second = tables.addresses(300), tables.addresses(300)
    expected = translate(tables, second)
    result = translate(tables, first)
    pa, fault = result.pa, result.fault
    again = translate(tables, second, out=result)
    assert again is result
    assert again.pa is pa
    assert again.fault is fault
    assert same(again, expected)


def test_out_may_overlap_the_addresses(tables: RandomTables) -> None:
    va = tables.addresses(300)
    expected = translate(tables, va)
    for shift in (0, 1, 150):
        for step in (1, 2, -1):
            buffer = np.zeros(800, np.uint64)
            source = buffer[:300]
            source[:] = va
            out = buffer[shift : shift + 300 * abs(step)][::step]
            assert np.may_share_memory(source, out)
            assert same(translate(tables, source, out=out, threads=2), expected)


def test_out_that_does_not_fit(tables: RandomTables) -> None:
    va = tables.addresses(8)
    frozen = np.zeros(8, np.uint64)
    frozen.flags.writeable = False
    for out, says in (
        (np.zeros(7, np.uint64), r"shape \(7,\)"),
        (np.zeros((8, 1), np.uint64), "shape"),
        (np.zeros(8, np.int64), "int64"),
        (np.zeros(8, ">u8"), "byte order"),
        (frozen, "read-only"),
        ([0] * 8, "list"),
        (translate(tables, va[:4]), r"shape \(4,\)"),
        (tables.mem.u64[:8], "overlaps the simulated memory"),
        (tables.mem.u64[16:32:2], "overlaps the simulated memory"),
        (tables.mem.u64[-8:], "overlaps the simulated memory"),
    ):
        before = tables.mem.u8.tobytes()
        with pytest.raises(ConfigError, match=says):
            translate(tables, va, out=out)
        assert tables.mem.u8.tobytes() == before


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, None])
def test_threads_that_are_none(tables: RandomTables, threads: Any) -> None:
    with pytest.raises(ConfigError, match=r"threads(=-?\d: give at least 1| must be an integer, not )"):
        translate(tables, [0], threads=threads)


def test_the_result_says_what_it_is(tables: RandomTables) -> None:
    found = translate(tables, tables.addresses(300))
    assert repr(found) == f"<translation of 300 addresses, {np.count_nonzero(found.fault)} faults>"
    assert (found.pa[found.fault != 0] == ONES).all()
