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
from fastmmu import Eptp, Fault, GuestState, PhysicalMemory
from fastmmu import reference as ref
from soup import MODES, Soup
from spaces import Space, eptp_of, memory_of, state_of
from strategies import MEMORY, Scene, random_scene

ROWS = 300  # tables that point at themselves map more; the first are compared
SKIPPED = {Fault.PAGE_FAULT, Fault.EPT_VIOLATION, Fault.EPT_MISCONFIG, Fault.BUS}
CASES = [pytest.param(mode, ept, id=f"{mode.name}{'-ept' if ept else ''}") for mode in ref.Mode for ept in (0, 1)]


def scene_of(seed: int, mode: ref.Mode, ept: int) -> tuple[Scene, Space]:
    scene = random_scene(random.Random(seed), modes=(mode,), with_ept=(bool(ept),))
    return scene, (memory_of(scene), state_of(scene.state), eptp_of(scene.ept))


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
            m.ept_leaf >> 8 & 3,
            m.memory_type,
        )
        for m in itertools.islice(found, ROWS)
    ]


def fetch_right(ept: ref.Ept, us: int) -> int:
    return 8 if ept.mbec and us else 4


COLUMNS = ("va", "pa", "size", "leaf", "guest_shift", "user", "writable", "executable", "ept_rights")


def listed(rows: np.recarray[Any, Any]) -> list[tuple[int, ...]]:
    columns = [rows[name].tolist() for name in COLUMNS]
    ad = (rows["ept_accessed"] | rows["ept_dirty"] << 1).tolist()
    return list(zip(*columns, ad, rows["memory_type"].tolist(), strict=True))


@pytest.mark.parametrize(("mode", "ept"), CASES)
@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 32))
def test_equals_the_specification(mode: ref.Mode, ept: int, seed: int) -> None:
    scene, space = scene_of(seed, mode, ept)
    rows = fastmmu.mappings(*space, limit=ROWS)
    assert listed(rows) == specified(scene), scene.defects


@pytest.mark.parametrize("ept", [False, True], ids=["native", "nested"])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=4)
@given(seed=st.integers(0, 1 << 32))
def test_decodes_the_leaf(mode: str, ept: bool, seed: int) -> None:
    soup = Soup(seed, mode, ept)
    rows = fastmmu.mappings(soup.mem, soup.state, soup.eptp, limit=ROWS)
    for row in plain(rows[rows.guest_shift > 0]):
        walk = fastmmu.walk(soup.mem, soup.state.replace(cpl=0, cr0=0x8000_0031, ac=1), row.va, eptp=soup.eptp)
        large = row.guest_shift > 12
        assert row.large == large
        assert (row.accessed, row.dirty) == (row.leaf >> 5 & 1, row.leaf >> 6 & 1)
        assert row.global_page == (row.leaf >> 8 & 1 and soup.state.cr4 >> 7 & 1)
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
    assert walk.fault in (Fault.NONE, Fault.PAGE_FAULT, Fault.EPT_VIOLATION)
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
def test_rows_translate_and_gaps_do_not(mode: ref.Mode, ept: int, seed: int) -> None:
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


@pytest.mark.parametrize("ept", [False, True], ids=["native", "nested"])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=6)
@given(seed=st.integers(0, 1 << 32), data=st.data())
def test_parts_are_those_of_the_whole(mode: str, ept: bool, seed: int, data: st.DataObject) -> None:
    soup = Soup(seed, mode, ept)
    space = (soup.mem, soup.state, soup.eptp)
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
    from fastmmu.reference.mappings import _ept_pages

    ept, top = scene.ept, 48 if scene.ept.levels == 4 else 52
    pages = _ept_pages(ref.SparseMemory(scene.mem, MEMORY), ept, ept.root, ept.levels, 0, 0x407, 0, (1 << top) - 1)
    return [(gpa, 1 << shift, rights, leaf) for gpa, shift, rights, leaf in itertools.islice(pages, ROWS)]


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 32))
def test_the_ept_alone(seed: int) -> None:
    scene, (memory, _, eptp) = scene_of(seed, ref.Mode.LEVEL4, 1)
    rows = fastmmu.ept_mappings(memory, eptp, limit=ROWS)
    wanted = ept_rows(scene)
    assert [(row.gpa, row["size"], row.leaf) for row in rows] == [(gpa, size, leaf) for gpa, size, _, leaf in wanted]
    for row, (_, _, rights, leaf) in zip(plain(rows), wanted, strict=True):
        assert (row.readable, row.writable, row.executable) == (rights & 1, rights >> 1 & 1, rights >> 2 & 1)
        assert row.user_executable == (rights >> 10 & 1 if scene.ept.mbec else 0)
        assert (row.accessed, row.dirty) == (leaf >> 8 & 1, leaf >> 9 & 1)
        assert (row.memory_type, row.ipat) == (leaf >> 3 & 7, leaf >> 6 & 1)
    for row in plain(rows[:20]):
        for gpa in (row.gpa, row.gpa + row.size - 1):
            walk = fastmmu.walk_ept(memory, eptp, gpa)
            assert (walk.fault == Fault.NONE) == row.readable
            assert not row.readable or walk.pa - row.hpa == gpa - row.gpa
    parts = list(itertools.islice(fastmmu.iter_ept_mappings(memory, eptp, chunk=3), 20))
    assert np.array_equal(np.concatenate([*parts, rows[:0]])[:ROWS], rows[:60])


# ---- what a program sees ---------------------------------------------------------------------------------------


def small() -> tuple[PhysicalMemory, GuestState]:
    """400000 -> 5000 for users, read-only; 401000 -> 6000; 600000 -> 200000, 2 MB; the last page -> 6000, kernel's."""
    memory = PhysicalMemory(0xA000)
    for pa, entry in {
        0x1000: 0x2067,
        0x1FF8: 0x7063,
        0x2000: 0x3067,
        0x3010: 0x4067,
        0x3018: 0x20_00E7,
        0x4000: 1 << 63 | 0x5025,
        0x4008: 0x6067,
        0x7FF8: 0x8063,
        0x8FF8: 0x9063,
        0x9FF8: 0x6163,
    }.items():
        memory.write64(pa, entry)
    return memory, GuestState(cr3=0x1000)


def test_an_address_space() -> None:
    rows = fastmmu.mappings(*small())
    assert isinstance(rows, fastmmu.MappingArray)
    assert [hex(va) for va in rows.va] == ["0x400000", "0x401000", "0x600000", "0xfffffffffffff000"]
    assert [hex(pa) for pa in rows.pa] == ["0x5000", "0x6000", "0x200000", "0x6000"]
    assert rows["size"].tolist() == [4096, 4096, 2 << 20, 4096]
    assert rows.user.tolist() == [1, 1, 1, 0]
    assert rows.writable.tolist() == [0, 1, 1, 1]
    assert rows.executable.tolist() == [0, 1, 1, 1]
    assert rows.dirty.tolist() == [0, 1, 1, 1]
    assert rows.global_page.tolist() == [0, 0, 0, 1]
    assert rows.memory_type.tolist() == [fastmmu.MemoryType.WB] * 4
    assert (rows.truncated, rows.skipped, len(rows.faults)) == (False, {}, 0)
    assert rows[1:].truncated is None


def test_limits_say_what_was_left_out() -> None:
    space = small()
    assert fastmmu.mappings(*space, limit=3).truncated is True
    assert fastmmu.mappings(*space, limit=4).truncated is False
    assert len(fastmmu.mappings(*space, start=0x40_0FFF, stop=0x40_1000)) == 1
    assert len(fastmmu.mappings(*space, start=0x60_0000, stop=1 << 64)) == 2
    assert len(fastmmu.mappings(*space, start=0x40_2000, stop=0x60_0000)) == 0
    assert len(fastmmu.mappings(*space, start=1 << 60, stop=1 << 61)) == 0
    parts = fastmmu.iter_mappings(*space, chunk=3)
    assert [len(part) for part in parts] == [3, 1]
    assert (parts.rows, parts.truncated) == (4, False)


def test_entries_that_map_nothing_are_described() -> None:
    memory, state = small()
    memory.write64(0x4008, 0x10_0000_0000_5067)  # bit 52 is free, and this page is mapped
    memory.write64(0x3018, 0x20_20E7)  # bit 13 of a 2 MB page is reserved
    memory.write64(0x3020, 0xFFFF_F000_0067)  # a table outside memory
    rows = fastmmu.mappings(memory, state.replace(maxphyaddr=48))
    assert rows.skipped == {Fault.PAGE_FAULT: 1, Fault.BUS: 1}
    reserved, bus = rows.faults
    assert (reserved.va, reserved["size"], reserved.hpa, reserved.entry) == (0x60_0000, 2 << 20, 0x3018, 0x20_20E7)
    assert (reserved.fault, reserved.level, reserved.ept) == (Fault.PAGE_FAULT, 2, 0)
    assert (bus.va, bus["size"], bus.hpa, bus.level) == (0x80_0000, 2 << 20, 0xFFFF_F000_0000, 1)


def test_a_table_that_memory_cuts_off() -> None:
    memory = PhysicalMemory(0x2000 + 16)
    memory.write64(0x1000, 0x2067)
    memory.write64(0x2008, 0x5067)
    state = GuestState(cr0=0x8000_0031, cr4=0, efer=0, cr3=0x1000)
    rows = fastmmu.mappings(memory, state)
    assert [(row.va, row.pa) for row in rows] == [(0x2000, 0x5000)]
    assert [(f.va, f["size"], f.hpa) for f in rows.faults] == [(0x4000, 0x3F_C000, 0x2010)]


def test_pdpte_registers_that_cannot_be_loaded() -> None:
    memory = PhysicalMemory(0x3000)
    memory.write64(0x1000, 0x2001)
    memory.write64(0x1008, 0x2023)  # bits 1 and 5 are reserved
    state = GuestState(cr0=0x8000_0031, cr4=0x20, efer=0, cr3=0x1000)
    rows = fastmmu.mappings(memory, state)
    assert (len(rows), rows.skipped) == (0, {Fault.GENERAL_PROTECTION: 1})
    memory.write64(0x2000, 0x9000_00E7 & ~0xFFF | 0xE7)
    rows = fastmmu.mappings(memory, state.replace(pdptes=[0x2001, 0, 0, 0x2001]))
    assert [(row.va, row.pa, row["size"]) for row in rows] == [
        (0, 0x9000_0000, 2 << 20),
        (3 << 30, 0x9000_0000, 2 << 20),
    ]


def test_memory_types() -> None:
    """PAT, fixed and variable MTRRs, EPT types: as the walk has them."""
    memory = PhysicalMemory(0x20_0000)
    for i, entry in enumerate((0x1000, 0x2000, 0x3000), 1):
        memory.write64(entry, (i + 1) << 12 | 0x67)
    rng = np.random.default_rng(3)
    frames = rng.choice(np.array([0x5, 0x85, 0xA3, 0xC1, 0x100, 0x4_0000, 0x8_0000], np.uint64), 512)
    flags = rng.integers(0, 2, (3, 512)).astype(np.uint64)
    memory.u64[0x800:0xA00] = (
        frames << np.uint64(12) | flags[0] << np.uint64(3) | flags[1] << np.uint64(4) | flags[2] << np.uint64(7) | 0x67
    )
    mtrrs = fastmmu.Mtrrs(
        0xC06,
        fixed=[0x0605_0401_0006_0504] * 11,
        variable=[(0x4000_0000, 0xFFFF_C000_0800), (0x8000_0005, 0xFFFF_8000_0800)],
    )
    state = GuestState(cr3=0x1000, pat=0x0605_0407_0106_0500, mtrrs=mtrrs)
    for pa, entry in {0x5000: 0x6007, 0x6000: 0x7007, 0x7000: 0xB7, 0x7008: 0x4000_00F7, 0x7010: 0x8000_00AF}.items():
        memory.write64(pa, entry)
    for registers in (state, state.replace(cr0=0xC005_0033), state.replace(mtrrs=fastmmu.Mtrrs(6))):
        for eptp in (None, 0x501E):
            rows = fastmmu.mappings(memory, registers, eptp)
            assert len(rows) == (512 if eptp is None else np.count_nonzero(frames < 0x600))
            walks = [fastmmu.walk(memory, registers, va, eptp=eptp).memory_type for va in rows.va.tolist()]
            assert rows.memory_type.tolist() == walks
            assert len(set(walks)) > 2 or registers is not state


def test_paging_off_is_one_page() -> None:
    off = GuestState(cr0=0x31, cr4=0, efer=0)
    (row,) = fastmmu.mappings(PhysicalMemory(0x1000), off)
    assert (row.va, row.pa, row["size"], row.guest_shift, row.leaf) == (0, 0, 1 << 32, 0, 0)
    assert (row.user, row.readable, row.writable, row.executable) == (1, 1, 1, 1)
    memory = PhysicalMemory(0x4000)
    for pa, entry in {0x1000: 0x2007, 0x2000: 0xC000_00B3 | 4, 0x2018: 0x3007, 0x3010: 0x4000_0085 | 0x30}.items():
        memory.write64(pa, entry)
    rows = fastmmu.mappings(memory, off, 0x101E)
    assert [(row.va, row.pa, row["size"]) for row in rows] == [
        (0, 0xC000_0000, 1 << 30),
        (0xC040_0000, 0x4000_0000, 2 << 20),
    ]
    assert [(f.va, f["size"]) for f in rows.faults] == [
        (1 << 30, 2 << 30),
        (0xC000_0000, 4 << 20),
        (0xC060_0000, (1 << 30) - (6 << 20)),
    ]


def test_an_ept_page_smaller_than_the_guests() -> None:
    """A guest page of 2 MB over EPT pages of 4 KB, with a hole and a malformed entry among them."""
    memory = PhysicalMemory(0x8000)
    for pa, entry in {0x1000: 0x2007, 0x2000: 0x3007, 0x3000: 0x4007, 0x5000: 0x6067, 0x6000: 0x7067}.items():
        memory.write64(pa, entry)
    memory.u64[0x4000 // 8 : 0x5000 // 8] = (np.arange(512, dtype=np.uint64) << np.uint64(12)) + np.uint64(0x33)
    memory.write64(0x7000, 0xE7)  # 0 -> guest-physical 0, 2 MB
    memory.write64(0x4000 + 8 * 9, 0)
    memory.write64(0x4000 + 8 * 10, 0)
    memory.write64(0x4000 + 8 * 12, 0x2)  # write-only
    rows = fastmmu.mappings(memory, GuestState(cr3=0x5000), Eptp(0x101E))
    assert len(rows) == 509
    assert set(rows["size"].tolist()) == {4096}
    assert set(rows.guest_shift.tolist()) == {21}
    assert not rows.executable.any()
    assert rows.writable.all()
    assert rows.skipped == {Fault.EPT_VIOLATION: 1, Fault.EPT_MISCONFIG: 1}
    assert [(f.va, f["size"], f.fault) for f in rows.faults] == [
        (0x9000, 0x2000, Fault.EPT_VIOLATION),
        (0xC000, 0x1000, Fault.EPT_MISCONFIG),
    ]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"start": -4096}, "unsigned"),
        ({"stop": (1 << 64) + 1}, "stop"),
        ({"limit": -1}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"start": True}, "start"),
    ],
)
def test_bad_arguments_are_named(words: dict[str, Any], match: str) -> None:
    with pytest.raises(fastmmu.FastmmuError, match=match):
        fastmmu.mappings(*small(), **words)


def test_roots_outside_memory_are_named() -> None:
    with pytest.raises(fastmmu.BusError, match="cr3=0xa000"):
        fastmmu.mappings(small()[0], GuestState(cr3=0xA000))
    with pytest.raises(fastmmu.BusError, match="eptp=0xa01e"):
        fastmmu.ept_mappings(small()[0], 0xA01E)
    with pytest.raises(fastmmu.ConfigError, match="chunk"):
        fastmmu.iter_mappings(*small(), chunk=0)
