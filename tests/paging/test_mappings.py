"""Enumeration against the executable specification, and against walks of the addresses that it lists."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmmu
from fastmmu import Fault, GuestState
from fastmmu import reference as ref
from tests.support.address_spaces import Space, space_of
from tests.support.random_scenes import MEMORY, Scene, random_scene
from tests.support.random_tables import MODES, RandomTables

ROWS = 300  # tables that point at themselves map more; the first are compared
SKIPPED = {Fault.PAGE_FAULT, Fault.EPT_VIOLATION, Fault.EPT_MISCONFIG, Fault.BUS, Fault.NESTED_PAGE_FAULT}
OVER = {"": False, "-ept": True, "-npt": "npt"}
CASES = [pytest.param(mode, OVER[ept], id=f"{mode.name}{ept}") for mode in ref.Mode for ept in OVER]


def scene_of(seed: int, mode: ref.Mode, ept: bool | str) -> tuple[Scene, Space]:
    scene = random_scene(random.Random(seed), modes=(mode,), with_ept=(ept,))
    return scene, space_of(scene)


def plain(rows: np.recarray[Any, Any]) -> list[SimpleNamespace]:
    """Rows as objects with plain integers."""
    return [SimpleNamespace(**dict(zip(rows.dtype.names, row, strict=True))) for row in rows.tolist()]


# ---- the executable specification ---------------------------------------------------------------------------


def specified(scene: Scene) -> list[tuple[int, ...]]:
    found = ref.mappings(ref.SparseMemory(scene.mem, MEMORY), scene.state, ept=scene.ept)
    return [
        (
            m.va,
            m.pa,
            m.size,
            m.leaf,
            m.guest_size.bit_length() - 1 if m.guest_size else 0,
            m.us,
            int(bool(m.rw and (scene.ept is None or m.ept_rights & 2))),
            int(not m.xd and (scene.ept is None or bool(m.ept_rights & fetch_right(scene.ept, m.us)))),
            m.ept_rights,
            m.ept_leaf >> (5 if isinstance(scene.ept, ref.Npt) else 8) & 3,
            m.memory_type,
        )
        for m in itertools.islice(found, ROWS)
    ]


def fetch_right(ept: ref.Ept | ref.Npt, us: int) -> int:
    return 8 if ept.mbec and us else 4


COLUMNS = ("va", "pa", "size", "leaf", "guest_shift", "user", "writable", "executable", "ept_rights")


def listed(rows: np.recarray[Any, Any]) -> list[tuple[int, ...]]:
    columns = [rows[name].tolist() for name in COLUMNS]
    ad = (rows["ept_accessed"] | rows["ept_dirty"] << 1).tolist()
    return list(zip(*columns, ad, rows["memory_type"].tolist(), strict=True))


@pytest.mark.parametrize(("mode", "ept"), CASES)
@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 32))
def test_equals_the_specification(mode: ref.Mode, ept: bool | str, seed: int) -> None:
    scene, space = scene_of(seed, mode, ept)
    rows = fastmmu.mappings(*space, limit=ROWS)
    assert listed(rows) == specified(scene), scene.defects


@pytest.mark.parametrize("ept", [False, True, "npt"], ids=["native", "nested", "npt"])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=4)
@given(seed=st.integers(0, 1 << 32))
def test_decodes_the_leaf(mode: str, ept: bool | str, seed: int) -> None:
    tables = RandomTables(seed, mode, ept)
    rows = fastmmu.mappings(tables.mem, tables.state, tables.eptp, limit=ROWS)
    for row in plain(rows[rows.guest_shift > 0]):
        walk = fastmmu.walk(tables.mem, tables.state.replace(cpl=0, cr0=0x8000_0031, ac=1), row.va, eptp=tables.eptp)
        large = row.guest_shift > 12
        assert row.large == large
        assert (row.accessed, row.dirty) == (row.leaf >> 5 & 1, row.leaf >> 6 & 1)
        assert row.global_page == (row.leaf >> 8 & 1 and tables.state.cr4 >> 7 & 1)
        assert row.pat == (row.leaf >> 3 & 3 | (row.leaf >> (12 if large else 7) & 1) << 2)
        assert row.key == (row.leaf >> 59 & 15 if mode in "45" else 0)
        if walk.fault == Fault.NONE:
            assert row.memory_type == walk.memory_type
            assert (row.pa, row.gpa) == (walk.pa, walk.gpa)
            assert 1 << row.guest_shift == walk.page_size
            assert (1 << row.ept_shift if ept else None) == walk.ept_page_size
            assert row.readable == 1


# ---- walks ----------------------------------------------------------------------------------------------------


def supervisor(state: GuestState) -> GuestState:
    """The registers with which the guest's own tables deny a supervisor nothing but writes and fetches."""
    quiet = {"cr4": state.cr4 & ~(3 << 20 | 1 << 22 | 1 << 24), "cr0": state.cr0 | 1 << 16}
    return state.replace(**quiet, cpl=0, ac=1, implicit=False)


def flag_update(walk: fastmmu.WalkResult) -> bool:
    """Did the walk fail because EPT does not let it set a flag in a guest table? That is no matter here."""
    return walk.fault == Fault.EPT_VIOLATION and walk.exit_qualification & 0x102 == 2


def allowed(space: Space, state: GuestState, va: int, access: str) -> int | None:
    """1 or 0; None where that does not show."""
    memory, _, eptp = space
    walk = fastmmu.walk(memory, state, va, access=access, eptp=eptp)
    if flag_update(walk):
        return None
    assert walk.fault in (Fault.NONE, Fault.PAGE_FAULT, Fault.EPT_VIOLATION, Fault.NESTED_PAGE_FAULT)
    return int(walk.fault == Fault.NONE)


def check_rights(space: Space, rows: np.recarray[Any, Any]) -> None:
    kernel = supervisor(space[1])
    user = kernel.replace(cpl=3)
    for row in plain(rows):
        for va in (row.va, row.va + row.size - 1):
            walk = fastmmu.walk(space[0], kernel, va, eptp=space[2])
            if walk.fault == Fault.NONE:
                assert walk.pa - row.pa == va - row.va
            for state, mine in ((kernel, 1), (user, row.user)):
                for access, right in (("r", row.readable), ("w", row.writable), ("x", row.executable)):
                    assert allowed(space, state, va, access) in (None, mine & right), (hex(va), access)


def gaps(rows: np.recarray[Any, Any], others: Iterator[int]) -> list[int]:
    """Addresses of which no row speaks: those beside rows, and others."""
    beside = itertools.chain(rows.va.tolist(), (rows.va + rows["size"]).tolist())
    tried = {(va + step) % (1 << 64) for va in beside for step in (0, -1)} | set(others)
    return [va for va in sorted(tried) if not np.any((rows.va <= va) & (va - rows.va < rows["size"]))]


@pytest.mark.parametrize(("mode", "ept"), CASES)
@settings(max_examples=12)
@given(seed=st.integers(0, 1 << 32))
def test_rows_translate_and_gaps_do_not(mode: ref.Mode, ept: bool | str, seed: int) -> None:
    scene, space = scene_of(seed, mode, ept)
    memory, state, eptp = space
    rows = fastmmu.mappings(*space, limit=ROWS)
    check_rights(space, rows[:20])
    for fault in plain(rows.faults[:20]):
        walk = fastmmu.walk(memory, supervisor(state), fault.va, eptp=eptp)
        assert walk.fault == fault.fault or flag_update(walk)
    if rows.truncated:
        return
    assert set(rows.skipped) <= SKIPPED
    assert sum(rows.skipped.values()) == len(rows.faults)
    rng = random.Random(seed)
    others = [la for la, _ in scene.attempts] + [rng.getrandbits(64) for _ in range(5)]
    tried = gaps(rows, (la if state.efer & 0x400 else la & 0xFFFF_FFFF for la in others))
    if tried and not state.efer & 0x400:
        tried = [va for va in tried if va < 1 << 32]
    found = fastmmu.translate(memory, supervisor(state), np.array(tried, np.uint64), eptp=eptp)
    assert found.fault.all()


# ---- parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ept", [False, True, "npt"], ids=["native", "nested", "npt"])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=6)
@given(seed=st.integers(0, 1 << 32), data=st.data())
def test_parts_are_those_of_the_whole(mode: str, ept: bool | str, seed: int, data: st.DataObject) -> None:
    tables = RandomTables(seed, mode, ept)
    space = (tables.mem, tables.state, tables.eptp)
    whole = fastmmu.mappings(*space, limit=20_000)
    chunk = data.draw(st.sampled_from([1, 2, 3, 7, 100, 511, 4096]))
    parts = fastmmu.iter_mappings(*space, limit=20_000, chunk=chunk)
    taken = list(itertools.islice(parts, 3000 // chunk + 1))
    assert all(len(part) == chunk for part in taken[:-1])
    joined = np.concatenate([*taken, whole[:0]])
    assert np.array_equal(joined, whole[: len(joined)])
    if not whole.truncated and len(taken) < 3000 // chunk + 1:
        assert (len(joined), parts.rows) == (len(whole), len(whole))
        assert (parts.skipped, parts.truncated) == (whole.skipped, False)
        assert np.array_equal(parts.faults, whole.faults)
    limit = data.draw(st.integers(0, len(whole)))
    some = fastmmu.mappings(*space, limit=limit)
    assert np.array_equal(some, whole[:limit])
    assert some.truncated == (limit < len(whole) or whole.truncated)
    if len(whole) and not whole.truncated:
        edges = st.sampled_from(whole.va.tolist()).flatmap(lambda va: st.integers(max(0, va - 5000), va + 5000))
        start, stop = sorted((data.draw(edges), data.draw(edges) % (1 << 64)))
        part = fastmmu.mappings(*space, start=start, stop=stop)
        meets = (whole.va <= max(stop, 1) - 1) & (whole.va + (whole["size"] - np.uint64(1)) >= start) & (stop > start)
        assert np.array_equal(part, whole[meets])


def ept_rows(scene: Scene) -> list[tuple[int, int, int, int]]:
    """(gpa, size, rights, leaf), by the specification's own recursion."""
    from fastmmu.reference.paging.mappings import _ept_pages

    ept, top = scene.ept, 48 if scene.ept.levels == 4 else 52
    pages = _ept_pages(ref.SparseMemory(scene.mem, MEMORY), ept, ept.root, ept.levels, 0, 0x407, 0, (1 << top) - 1)
    return [(gpa, 1 << shift, rights, leaf) for gpa, shift, rights, leaf in itertools.islice(pages, ROWS)]


@pytest.mark.parametrize("ept", [True, "npt"], ids=["ept", "npt"])
@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 32))
def test_the_ept_alone(ept: bool | str, seed: int) -> None:
    scene, (memory, _, eptp) = scene_of(seed, ref.Mode.LEVEL4, ept)
    assert scene.ept is not None
    assert eptp is not None
    rows = fastmmu.ept_mappings(memory, eptp, limit=ROWS)
    wanted = ept_rows(scene)
    assert [(row.gpa, row["size"], row.leaf) for row in rows] == [(gpa, size, leaf) for gpa, size, _, leaf in wanted]
    for row, (_, _, rights, leaf) in zip(plain(rows), wanted, strict=True):
        assert (row.readable, row.writable, row.executable) == (rights & 1, rights >> 1 & 1, rights >> 2 & 1)
        assert row.user_executable == (rights >> 10 & 1 if scene.ept.mbec else 0)
        if ept == "npt":
            assert (row.accessed, row.dirty, row.ipat) == (leaf >> 5 & 1, leaf >> 6 & 1, 0)
            index = leaf >> 3 & 3 | (leaf >> (7 if row.size == 4096 else 12) & 1) << 2
            assert row.memory_type == eptp.options["pat"] >> 8 * index & 0xFF
        else:
            assert (row.accessed, row.dirty) == (leaf >> 8 & 1, leaf >> 9 & 1)
            assert (row.memory_type, row.ipat) == (leaf >> 3 & 7, leaf >> 6 & 1)
    for row in plain(rows[:20]):
        for gpa in (row.gpa, row.gpa + row.size - 1):
            walk = fastmmu.walk_ept(memory, eptp, gpa)
            assert (walk.fault == Fault.NONE) == row.readable
            assert not row.readable or walk.pa - row.hpa == gpa - row.gpa
    parts = list(itertools.islice(fastmmu.iter_ept_mappings(memory, eptp, chunk=3), 20))
    assert np.array_equal(np.concatenate([*parts, rows[:0]])[:ROWS], rows[:60])


# ---- entries alike ----------------------------------------------------------------------------------------------

FLAGS = (
    0x67,
    0x67,
    0x67,
    0x27,
    0x65,
    0x7,
    0x167,
    0x87,
    0x8000_0000_0000_0067,
    0x66,
    0,
    0x1000_0000_0000_0067,
    0x67 | 1 << 51,
)
HOST_FLAGS = (0x37, 0x37, 0x37, 0x337, 0x33, 0x77, 0x7, 0x31, 0x32, 0, 0x37 | 1 << 51)


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 32), nested=st.booleans(), mtrr=st.booleans())
def test_runs_of_entries_alike(seed: int, nested: bool, mtrr: bool) -> None:
    """A page table is enumerated as its pages are one by one: what is kept of the last entry is right for the next."""
    rng = random.Random(seed)
    memory = fastmmu.PhysicalMemory(0x10_0000)
    words = memory.u64
    tables = [0x1000, 0x2000, 0x3000, 0x4000]
    for table, below in itertools.pairwise(tables):
        words[table >> 3] = below | 0x67
    few = [rng.choice(FLAGS) for _ in range(3)]
    some = [frame << 12 for frame in (0x20, 0x30, 0xFF, 0x100, 0x101, 0x2FF)]
    for i in range(512):
        words[(tables[-1] >> 3) + i] = rng.choice(some) | (rng.choice(few) if rng.random() < 0.9 else rng.choice(FLAGS))
    eptp = None
    if nested:  # 4 MB of guest-physical memory, the tables where they are
        for table, below, rights in ((0x8000, 0x9000, 7), (0x9000, 0xA000, 7), (0xA000, 0xB000, 7)):
            words[table >> 3] = below | rights
        words[(0xA000 >> 3) + 1] = 0xC000 | rng.choice((7, 3, 1))
        few = [rng.choice(HOST_FLAGS) for _ in range(3)]
        for i in range(1024):
            words[(0xB000 >> 3) + i] = i << 12 | (0x37 if i < 0x20 else rng.choice(few))
        eptp = 0x801E
    ranges = [(0x10_0000, 0x3FFF_FFF0_0800)] if mtrr else []  # 1 MB of type UC at 1 MB
    state = GuestState(cr3=0x1000, maxphyaddr=46, mtrrs=fastmmu.Mtrrs(0xC06, variable=ranges))
    whole = fastmmu.mappings(memory, state, eptp)
    single = [fastmmu.mappings(memory, state, eptp, start=at, stop=at + 1) for at in range(0, 512 << 12, 4096)]
    assert np.array_equal(whole, np.concatenate(single))
    assert np.array_equal(whole.faults, np.concatenate([part.faults for part in single]))
    assert whole.skipped == {
        fault: sum(part.skipped.get(fault, 0) for part in single)
        for fault in Fault
        if any(fault in p.skipped for p in single)
    }
