"""Enumeration as a program uses it: small address spaces, limits, faults, wrong arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu import Eptp, Fault, GuestState, PhysicalMemory


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
