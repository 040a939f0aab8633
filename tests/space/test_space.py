"""An address space as an object: reads, holes, the reverse index and differences, beside the specification."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmmu
from fastmmu import AddressSpace, Fault, GuestState, NotMappedError, PhysicalMemory
from fastmmu import reference as ref
from fastmmu.image import read_guest
from fastmmu.reference.space import space as spec
from tests.support.address_spaces import space_of, tables
from tests.support.placed_memory import PAGE, Placed, flat_of
from tests.support.random_scenes import MEMORY, random_scene
from tests.support.random_tables import MODES, RandomTables
from tests.support.recordings import all_of, sample_of

GUESTS = [*sample_of("guests").glob("*/meta.json"), *all_of("guests", "FASTMMU_GUESTS").glob("*/meta.json")]
TOP = (1 << 64) - 1


def listed(holes: Any) -> list[tuple[int, int, int]]:
    return [(int(hole.start), int(hole.length), int(hole.fault)) for hole in holes]


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placed", [False, True], ids=["flat", "segments"])
def test_reads_are_those_of_the_specification(placed: bool, tmp_path: Path) -> None:
    rng = random.Random(15)
    seen: Counter[str] = Counter()
    for _ in range(160):
        scene = random_scene(rng)
        fill = {at: rng.getrandbits(64) for at in range(0, MEMORY, 8) if at not in scene.mem and rng.random() < 0.02}
        mem = {**fill, **scene.mem}
        flat = bytearray(flat_of(mem, MEMORY))
        where = Placed(rng, bytes(flat), tmp_path / "file") if placed else None
        plain: Any = ref.SparseMemory(mem, MEMORY)
        if where is not None:
            plain = ref.SegmentedMemory(ref.SparseMemory(mem), where.pieces)
        _, state, eptp = space_of(scene)
        memory = where.memory if where else PhysicalMemory.from_array(np.frombuffer(bytes(flat), np.uint64))
        try:
            space = AddressSpace(memory, state, eptp)
        except fastmmu.BusError:
            continue
        last = TOP if scene.state.lma else (1 << 32) - 1
        for la, _ in scene.attempts:
            va = min(last, max(0, scene.state.linear(la) + rng.choice([0, 0, -30, PAGE - 20]) & TOP))
            n = rng.choice([1, 8, 24, 60, 60, 260])
            want, holes = spec.read(plain, scene.state, va, n, ept=scene.ept, pad=0x5A)
            assert space.read(va, n, pad=0x5A) == want
            assert listed(space.holes(va, n)) == [(start, size, int(fault)) for start, size, fault in holes]
            fault = np.full(3, 9, np.uint8)
            many = space.read_many([va] * 3, n, pad=0x5A, fault=fault)
            assert many.tobytes() == want * 3
            assert fault.tolist() == [int(holes[0].fault) if holes else 0] * 3
            out = bytearray(n)
            assert space.read_into(va, out, pad=0x5A) == n - sum(hole.size for hole in holes)
            assert out == want
            seen["holes" if holes else "whole"] += 1
            seen.update(str(hole.fault.name) for hole in holes)
            if holes:
                with pytest.raises(NotMappedError) as error:
                    space.read(va, n)
                assert listed(error.value.holes) == listed(space.holes(va, n))
                with pytest.raises(NotMappedError, match=f"{holes[0].start:#x}"):
                    space.read_many([va], n)
    assert seen["whole"] > 15
    assert min(seen[name] for name in ("PAGE_FAULT", "BUS", "GENERAL_PROTECTION", "EPT_VIOLATION", "EPT_MISCONFIG")) > 0


def test_reads_over_pages_of_every_size() -> None:
    """A page of 4 KB, its neighbour and a page of 2 MB behind it: what is read is what lies there."""
    memory = tables(8 << 20, (1, [0x2007] + [0] * 511), (2, [0x3007] + [0] * 511),
                    (3, [0x4007, 0x40_0087] + [0] * 510), (4, [0] * 510 + [0x9007, 0x7007]))  # fmt: skip
    memory.u8[0x7000:0x8000] = 7
    memory.u8[0x9000:0xA000] = 9
    memory.u8[0x40_0000:0x60_0000] = np.arange(1 << 21, dtype=np.uint32).view(np.uint8)[: 1 << 21]
    space = AddressSpace(memory, GuestState(cr3=0x1000))
    data = space.read(0x1F_E000, 0x2000 + (1 << 21))
    assert data == b"\x09" * PAGE + b"\x07" * PAGE + memory.u8[0x40_0000:0x60_0000].tobytes()
    assert space.read(0x40_0000 - 3, 3) == memory.u8[0x5F_FFFD:0x60_0000].tobytes()
    assert listed(space.holes(0x1F_D000, 0x2000)) == [(0x1F_D000, 0x1000, Fault.PAGE_FAULT)]
    with pytest.raises(NotMappedError, match=r"of 16 bytes .*0x400000\.\.0x400007 \(no page\)"):
        space.read(0x40_0000 - 8, 16)
    va = np.arange(0x1F_E000, 0x21_0000, 24, dtype=np.uint64)
    many = space.read_many(va.reshape(5, -1), 8) if len(va) % 5 == 0 else space.read_many(va, 8)
    assert many.reshape(-1, 8).tolist() == [list(space.read(int(one), 8)) for one in va]
    assert space.read(0, 0) == b""
    assert space.read_many([], 8).shape == (0, 8)
    assert space.read_many([1, 2], 0).shape == (2, 0)


def test_the_end_of_the_address_space() -> None:
    memory = tables(1 << 16, (1, [0] * 511 + [0x2007]), (2, [0] * 511 + [0x3007]), (3, [0] * 511 + [0x4007]),
                    (4, [0] * 511 + [0x7007]))  # fmt: skip
    space = AddressSpace(memory, GuestState(cr3=0x1000))
    assert space.read(TOP - 7, 8) == bytes(8)
    assert space.read(TOP - 3, 8, pad=1) == bytes(4) + b"\1" * 4
    assert listed(space.holes(TOP - 3, 8)) == [(0, 4, Fault.GENERAL_PROTECTION)]  # behind the last, that is at 2**64
    off = AddressSpace(PhysicalMemory(1 << 16), GuestState(cr0=0x31, cr4=0, efer=0))
    assert off.read(0xFFF8, 8) == bytes(8)
    assert listed(off.holes(0, 1 << 33)) == [(0x1_0000, 0xFFFF_0000, Fault.BUS), (1 << 32, 1 << 32, 2)]
    with pytest.raises(fastmmu.StateError, match="behind the last linear address"):
        off.read(1 << 32, 1)


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ept", [False, True], ids=["native", "nested"])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_where_and_differences_are_those_of_the_specification(mode: str, ept: bool, seed: int) -> None:
    rng = random.Random(seed)
    scenes = [RandomTables(seed, mode, ept, clean=True) for _ in "ab"]
    spoiled = scenes[1].mem.u64
    for _ in range(30):
        at = rng.randrange(len(spoiled))
        spoiled[at] ^= np.uint64(rng.choice([1, 2, 4, 1 << 5, 1 << 6, 1 << 9, 1 << 12, 1 << 3]))
    limit = 1500  # tables point at each other, and map a great deal
    rows = [fastmmu.mappings(one.mem, one.state, one.eptp, limit=limit) for one in scenes]
    ends = [int(one.va[-1]) if one.truncated else TOP for one in rows]
    rows = [fastmmu.mappings(one.mem, one.state, one.eptp, stop=min(*ends, TOP - 1), limit=limit * 3) for one in scenes]
    plain = [list(one) for one in rows]
    for software in (False, True):
        found = fastmmu.space.compare_mappings(*rows, software=software)
        added, gone, changed = spec.compare(*plain, software=software)
        assert found.added.tolist() == [plain[1][i].tolist() for i in added]
        assert found.gone.tolist() == [plain[0][i].tolist() for i in gone]
        assert found.before.tolist() == [plain[0][i].tolist() for i, _ in changed]
        assert found.after.tolist() == [plain[1][i].tolist() for _, i in changed]


@pytest.mark.parametrize("place", [meta.parent for meta in GUESTS], ids=lambda place: place.name)
def test_guests(place: Path) -> None:
    """Each mapping of a recorded guest is found again by its physical address; its bytes are those of that address."""
    guest = read_guest(place)
    space = AddressSpace(guest.memory, guest.state)
    rows = space.index(threads=3)
    assert np.array_equal(rows, space.mappings())
    assert np.array_equal(rows, space.mappings(threads=2))
    rng = np.random.default_rng(1)
    plain, starts, sizes = rows.view(np.recarray), rows.pa.copy(), rows["size"].copy()
    for i in rng.integers(0, len(rows), 40).tolist():
        row = plain[i]
        pa = int(row.pa) + int(rng.integers(0, row.size))
        want = (starts <= pa) & (pa - starts < sizes)
        assert np.array_equal(space.where(pa), plain[want])
        assert row.va in space.where(pa).va
        if pa + 16 <= guest.memory.nbytes:
            va = int(row.va) + pa - int(row.pa)
            n = min(16, int(row.va) + int(row.size) - va)
            assert space.read(va, n) == guest.memory.read(pa, n)
    assert len(space.where(1 << 51)) == 0
    assert not space.diff(space)
    assert not space.translate(guest.expected["va"]).fault.any()


def test_the_index_is_that_of_its_time() -> None:
    memory = PhysicalMemory(1 << 16)
    for at, value in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x7007)):
        memory.write64(at, value)
    space = AddressSpace(memory, GuestState(cr3=0x1000))
    before = space.mappings()
    assert space.where(0x7123).va.tolist() == [0]
    memory.write64(0x4008, 0x7005)
    memory.write64(0x4010, 0x8007)
    memory.write64(0x4000, 0x7027)
    assert space.where(0x7123).va.tolist() == [0]
    assert space.mappings().va.tolist() == [0, 0x1000, 0x2000]
    space.forget()
    assert space.where(0x7123).va.tolist() == [0, 0x1000]
    assert space.where(0x7FFF, 2).va.tolist() == [0, 0x1000, 0x2000]
    found = fastmmu.space.compare_mappings(before, space.mappings())
    assert (found.added.va.tolist(), len(found.gone), len(found.before)) == ([0x1000, 0x2000], 0, 0)
    assert repr(found) == "<SpaceDiff: 2 added, 0 gone, 0 changed>"
    assert fastmmu.space.compare_mappings(before, space.mappings(), software=True).after.accessed.tolist() == [1]


def test_pdptes_are_those_of_the_load() -> None:
    memory = PhysicalMemory(1 << 16)
    memory.write64(0x1000, 0x2001)
    memory.write64(0x2000, 0x3007)
    memory.write64(0x3000, 0x7007)
    state = GuestState(cr0=0x8000_0011, cr3=0x1000, cr4=0x20, efer=0)
    space = AddressSpace(memory, state)
    memory.write64(0x1000, 0)
    assert space.read(0, 4) == bytes(4)
    assert len(space.mappings()) == 1
    assert AddressSpace(memory, state).holes(0, 4).fault.tolist() == [Fault.PAGE_FAULT]


def test_threads_share_a_space() -> None:
    memory = tables(1 << 20, (1, [0x2007] + [0] * 511), (2, [0x3007] + [0] * 511), (3, [0x4007] * 512),
                    (4, np.arange(512) << 12 | 7))  # fmt: skip
    memory.u8[0x10000:] = np.arange((1 << 20) - 0x10000, dtype=np.uint32).view(np.uint8)[: (1 << 20) - 0x10000]
    space = AddressSpace(memory, GuestState(cr3=0x1000))
    want = space.read(0x10000, 0xF0000 - 0x1000)
    same: list[bool] = []

    def work() -> None:
        same.extend(space.read(0x10000, len(want)) == want for _ in range(20))
        same.extend(len(space.where(0x10000)) == 1 << 9 for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 160
    assert len(space.index()) == 1 << 18
