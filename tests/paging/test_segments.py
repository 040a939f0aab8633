"""Memory with holes: the bytes are where the segments say, and walks, arrays and enumerations see what is there."""

from __future__ import annotations

import mmap
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu import Fault, PhysicalMemory
from fastmmu import reference as ref
from fastmmu.paging.memory import FETCHED, ZERO
from tests.conformance.kernel import WORDS, kernel_eptp, kernel_state
from tests.conformance.kernel import observed as kernel_observed
from tests.conformance.spec import observed as spec_observed
from tests.support.placed_memory import PAGE, Placed, flat_of, words
from tests.support.random_scenes import MEMORY, random_scene
from tests.support.walk_comparison import tables_overlap

# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_each_byte_is_where_its_segment_says(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    flat = rng.randbytes(12 * PAGE)
    placed = Placed(rng, flat, tmp_path / "file", writable=bool(seed & 1))
    memory = placed.memory
    ranges = ref.SegmentedMemory(ref.SparseMemory(), placed.pieces).ranges
    assert memory.ranges.tolist() == [list(pair) for pair in ranges]
    assert memory.nbytes == len(memory) == ranges[-1][1]
    for _ in range(200):
        at, n = rng.randrange(len(flat)), rng.randrange(1, 3 * PAGE)
        behind = next((end for start, end in ranges if start <= at < end), at)
        if at + n <= behind:
            assert memory.read(at, n) == flat[at : at + n]
        else:
            with pytest.raises(fastmmu.BusError, match=f"address {behind:#x} is not in memory|more than memory holds"):
                memory.read(at, n)
            out = bytearray(n)
            assert memory.read_into(at, out) == behind - at
            assert out[: behind - at] == flat[at:behind]
        at &= ~7
        if any(start <= at and at + 8 <= end for start, end in ranges):
            assert memory.read64(at) == int.from_bytes(flat[at : at + 8], "little")
        else:
            with pytest.raises(fastmmu.BusError):
                memory.read64(at)


def test_pages_are_put_in_place_once_and_reads_of_bytes_put_none() -> None:
    made: Counter[int] = Counter()

    def fetch(at: int) -> bytes:
        made[at] += 1
        return bytes([at >> 12]) * PAGE

    memory = PhysicalMemory.from_segments(words(0x4000), words(0x4000), [FETCHED], fetch=fetch)
    assert memory.read(0x4000, 0x4000) == b"".join(bytes([n]) * PAGE for n in range(4, 8))
    assert memory.copied == 0
    for _ in range(3):
        assert memory.read64(0x5008) == 0x0505050505050505
    assert (memory.copied, made[0x5000], made[0x6000]) == (PAGE, 2, 1)


def test_writes_stay_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 32)
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for offset in (0, 0x100):
            memory = PhysicalMemory.from_segments(
                words(0x1000), words(0x1000), [offset], data, file=file, writable=True
            )
            memory.write64(0x1010, 5)
            assert memory.read(0x1008, 16)[8:] == (5).to_bytes(8, "little")
            memory = PhysicalMemory.from_segments(words(0x1000), words(0x1000), [offset], data, file=file)
            assert not memory.writable
            with pytest.raises(fastmmu.StateError, match="read-only"):
                memory.write64(0x1010, 5)
    assert path.read_bytes() == bytes(range(256)) * 32


def test_zeros_take_no_memory() -> None:
    memory = PhysicalMemory.from_segments(words(0), words(1 << 45), [ZERO])
    for at in range(0, 1 << 45, 1 << 38):
        assert memory.read64(at) == 0
    assert memory.copied == 0


# ---- walks -----------------------------------------------------------------------------------------------------------


def spec_of(placed: Placed, mem: dict[int, int]) -> ref.SegmentedMemory:
    return ref.SegmentedMemory(ref.SparseMemory(mem), placed.pieces)


def test_walks_and_arrays_are_those_of_the_specification(tmp_path: Path) -> None:
    rng = random.Random(5)
    seen: Counter[str] = Counter()
    for _ in range(600):
        scene = random_scene(rng)
        placed = Placed(rng, flat_of(scene.mem, MEMORY), tmp_path / "file")
        state, eptp = kernel_state(scene.state), kernel_eptp(scene.ept) if scene.ept else None
        spec = spec_of(placed, scene.mem)
        for la, access in scene.attempts:
            want = spec_observed(ref.walk(spec, scene.state, la, access, ept=scene.ept, write=False))
            try:
                got = kernel_observed(fastmmu.walk(placed.memory, state, la, access=access, eptp=eptp))
                batch = fastmmu.translate(placed.memory, state, [la], access=access, eptp=eptp)
            except fastmmu.BusError:  # a root outside memory is refused, needed or not
                seen["refused"] += 1
                continue
            if tables_overlap(want["steps"]):
                continue
            assert (got["k"], got.get("pa")) == (want["k"], want.get("pa"))
            seen[want["k"]] += 1
            if not (scene.ept and scene.ept.pml):
                assert WORDS[Fault(int(batch.fault[0]))] == want["k"]
                assert want["k"] != "ok" or int(batch.pa[0]) == want["pa"]
    assert seen["ok"] > 100
    assert seen["bus"] > 100
    assert seen["refused"] < seen.total() // 2


def test_enumerations_are_those_of_the_specification(tmp_path: Path) -> None:
    rng = random.Random(6)
    rows = buses = 0
    for _ in range(400):
        scene = random_scene(rng)
        placed = Placed(rng, flat_of(scene.mem, MEMORY), tmp_path / "file")
        spec = spec_of(placed, scene.mem)
        try:
            found = fastmmu.mappings(
                placed.memory,
                kernel_state(scene.state),
                kernel_eptp(scene.ept) if scene.ept else None,
                stop=1 << 40,
                limit=2000,
            )
        except fastmmu.BusError:
            continue
        if found.truncated:
            continue
        want = list(ref.mappings(spec, scene.state, ept=scene.ept, stop=1 << 40))
        assert [(int(r.va), int(r.pa), int(r["size"])) for r in found] == [(m.va, m.pa, m.size) for m in want]
        parts = fastmmu.iter_mappings(
            placed.memory,
            kernel_state(scene.state),
            kernel_eptp(scene.ept) if scene.ept else None,
            stop=1 << 40,
            chunk=3,
        )
        assert sum(map(len, parts)) == len(found)
        assert parts.skipped == found.skipped
        rows += len(found)
        assert found.skipped is not None
        buses += found.skipped.get(Fault.BUS, 0)
    assert rows > 200
    assert buses > 20


def test_a_table_in_memory_in_part() -> None:
    """The middle of a table is missing: its entries are told as one place, those around it are read."""
    table = np.zeros(512, np.uint64)
    table[[0, 100, 200, 511]] = [0x5007, 0x6007, 0x7007, 0x8007]
    levels = np.zeros(3 * 512, np.uint64)
    levels[[0, 512, 1024]] = [0x2007, 0x3007, 0x4007]
    data = levels.tobytes() + table.tobytes()
    state = fastmmu.GuestState(cr3=0x1000, cr4=0x20, efer=0x500)
    memory = PhysicalMemory.from_segments(
        words(0x1000, 0x4000 + 150 * 8 + 3), words(0x3000 + 90 * 8 + 5, 362 * 8 - 3), [0, 0x3000 + 150 * 8 + 3], data
    )
    rows = fastmmu.mappings(memory, state)
    assert rows.va.tolist() == [0, 200 << 12, 511 << 12]
    assert rows.skipped == {Fault.BUS: 1}
    (row,) = rows.faults
    assert (row.va, row["size"], row.hpa) == (90 << 12, 61 << 12, 0x4000 + 90 * 8)
    faults = fastmmu.translate(memory, state, np.arange(512) << 12).fault
    assert np.flatnonzero(faults == Fault.BUS).tolist() == list(range(90, 151))
    part = fastmmu.mappings(memory, state, start=100 << 12, stop=120 << 12)
    assert (len(part), part.skipped) == (0, {Fault.BUS: 1})
    assert part.faults[0].va == 100 << 12


# ---- what goes wrong -------------------------------------------------------------------------------------------------

LONG = fastmmu.GuestState(cr3=0, cr4=0x20, efer=0x500)


def test_what_fetch_raises_ends_the_call() -> None:
    class Broken(Exception):
        pass

    def fetch(at: int) -> bytes:
        if at == 0x1000:
            raise Broken(f"page {at:#x}")
        return (0x1007).to_bytes(8, "little") * 512 if at == 0 else b"short"

    memory = PhysicalMemory.from_segments(words(0), words(0x4000), [FETCHED], fetch=fetch)
    for call in (
        lambda: fastmmu.walk(memory, LONG, 0),
        lambda: fastmmu.translate(memory, LONG, np.zeros(1000, np.uint64), threads=3),
        lambda: fastmmu.mappings(memory, LONG),
        lambda: memory.read64(0x1000),
        lambda: memory.read(0x1000, 1),
    ):
        for _ in range(2):
            with pytest.raises(Broken, match="page 0x1000"):
                call()
    with pytest.raises(fastmmu.ConfigError, match="fetch made 5 bytes of the page at 0x2000"):
        memory.read64(0x2000)
    assert memory.read64(0) == 0x1007


@pytest.mark.parametrize("pages", [1, 2, 5, 100])
def test_fetch_may_give_more_than_a_page(pages: int) -> None:
    data = np.random.default_rng(2).integers(0, 256, 64 * PAGE, np.uint8).tobytes()
    asked: list[int] = []

    def fetch(at: int) -> memoryview:
        asked.append(at)
        return memoryview(data)[at : at + pages * PAGE - 8 * (pages > 1)]  # the last of them in part

    memory = PhysicalMemory.from_segments(words(0), words(64 * PAGE), [FETCHED], fetch=fetch)
    assert memory.read(0, 64 * PAGE) == data
    assert asked == list(range(0, 64 * PAGE, max(1, pages - 1) * PAGE))
    for at in (0, 63 * PAGE, 5 * PAGE + 9):
        assert memory.read(at, 100) == data[at : at + 100]
        assert memory.read64(at & ~7) == int.from_bytes(data[at & ~7 : (at & ~7) + 8], "little")


def test_pages_that_are_copied_are_bounded() -> None:
    itself = (7).to_bytes(8, "little") + b"".join((n << 12 | 7).to_bytes(8, "little") for n in range(1, 512))
    memory = PhysicalMemory.from_segments(words(0), words(1 << 21), [FETCHED], fetch=lambda at: itself, most=16 * PAGE)
    with pytest.raises(fastmmu.OutOfMemoryError, match=r"65536 bytes.*most="):
        fastmmu.translate(memory, LONG, np.arange(512, dtype=np.uint64) << 30)
    assert memory.copied == 16 * PAGE
    assert fastmmu.walk(memory, LONG, 0).pa == 0, "what is in place stays"


def test_threads_put_pages_in_place() -> None:
    rng = np.random.default_rng(1)
    frames = rng.permutation(np.arange(4, 516)).astype(np.uint64)
    data = np.zeros((516, 512), np.uint64)
    data[0, 0], data[1, 0] = 0x1007, 0x2007
    data[2] = frames << 12 | 7
    data[4:] = rng.integers(0, 1 << 40, (512, 512)) >> 12 << 12 | 7
    flat = PhysicalMemory.from_array(data)
    va = rng.integers(0, 1 << 30, 400_000).astype(np.uint64)
    want = fastmmu.translate(flat, LONG, va).pa
    raw = data.tobytes()
    for pieces in (
        {"offset": [1], "data": b"x" + raw},
        {"offset": [FETCHED], "fetch": lambda at: raw[at : at + PAGE]},
    ):
        memory = PhysicalMemory.from_segments(words(0), words(len(raw)), **pieces)
        found: list[Any] = []

        def work(memory: PhysicalMemory = memory, found: list[Any] = found) -> None:
            found.append(fastmmu.translate(memory, LONG, va, threads=2).pa)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 3
        assert all(np.array_equal(pa, want) for pa in found)
        assert memory.copied <= len(raw)


@pytest.mark.parametrize(
    ("start", "length", "offset", "match"),
    [
        ([0, 8], [16, 8], [0, 0], "segment 1, 0x8 bytes at 0x8: .*without overlap"),
        ([8, 0], [8, 8], [0, 0], "segment 1, 0x8 bytes at 0x0"),
        ([0], [0], [0], "segment 0, 0x0 bytes"),
        ([(1 << 46) - 8], [16], [ZERO], "below 0x400000000000"),
        ([0], [1 << 63], [ZERO], "segment 0"),
        ([0], [65], [0], "lies at byte 0 of data, which has 64"),
        ([0], [8], [57], "lies at byte 57"),
        ([0], [8], [-3], "lies at byte -3"),
        ([0], [8], [FETCHED], "there is no fetch"),
        ([3], [8], [0], "no segment holds a whole word"),
        ([], [], [], "no segment holds a whole word"),
        ([0, 8], [8], [0, 0], "2, 1, 2 elements"),
        ([0], [8], [0.5], "integers"),
        ([0], [8], [1 << 63], "63 bits"),
    ],
)
def test_bad_segments_are_named(start: list[int], length: list[int], offset: list[Any], match: str) -> None:
    with pytest.raises(fastmmu.ConfigError, match=match):
        PhysicalMemory.from_segments(words(*start), words(*length), np.array(offset), bytes(64))


def test_what_needs_one_array_says_so() -> None:
    memory = PhysicalMemory.from_segments(words(0x1000), words(0x2000), [ZERO], writable=True)
    for name in ("u8", "u64"):
        with pytest.raises(fastmmu.StateError, match=r"holes.*read\(address, n\).*ranges"):
            getattr(memory, name)
    with pytest.raises(fastmmu.ConfigError, match="without holes"):
        fastmmu.vmx.Cpu(memory)
    with pytest.raises(fastmmu.BusError, match="1 ranges up to 0x3000"):
        memory.read64(0)
    assert "1 ranges" in repr(memory)
