"""Root tables found in memory: beside the specification, in recorded guests, in images, in systems that are built."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu import AddressSpace, PhysicalMemory, find_roots
from fastmmu import reference as ref
from fastmmu.image import open_image, read_guest
from fastmmu.reference.space import roots as spec
from fastmmu.space.search import root_rows
from tests.support.placed_memory import Placed
from tests.support.random_tables import MODES, RandomTables
from tests.support.recordings import all_of, sample_of

SAMPLES = sorted(sample_of("guests").glob("*/meta.json"))  # without some of their tables
GUESTS = sorted(all_of("guests", "FASTMMU_GUESTS").glob("*/meta.json"))
IMAGES = all_of("files", "FASTMMU_FILES") / "images"


def listed(rows: Any) -> list[tuple[int, ...]]:
    return [(*row[:3], *row[4:12]) for row in rows.tolist()]


# ---- the specification -----------------------------------------------------------------------------------------------


def soup(seed: int) -> tuple[random.Random, bytearray]:
    """Tables of every mode, some clean, some spoiled; pages that nearly are tables."""
    rng = random.Random(seed)
    mode = list(MODES)[1 + seed % 4]
    tables = RandomTables(seed, mode, bool(rng.getrandbits(1)), clean=rng.random() < 0.7)
    entry, top, large = (np.uint32, 31, 1 << 7) if mode == "32" else (np.uint64, 63, 1 << 7)
    words = tables.mem.u8.view(entry).astype(np.uint64)
    keep = rng.choice([0.002, 0.02, 0.2, 1])  # of the entries: few lead somewhere, as in life
    words *= np.random.default_rng(seed).random(len(words)) < keep
    if rng.random() < 0.6:  # frames within memory
        frame = (words >> np.uint64(12)) % np.uint64(tables.mem.nbytes >> 12)
        words = np.where(words != 0, frame << np.uint64(12) | words & np.uint64(1 << top | 0xFFF), words)
    if rng.random() < 0.5:
        words &= ~np.uint64(large)
    return rng, bytearray(words.astype(entry).tobytes())


@pytest.mark.parametrize("placed", [False, True], ids=["flat", "segments"])
def test_rows_are_those_of_the_specification(placed: bool, tmp_path: Path) -> None:
    seen = dict.fromkeys(range(4), 0)
    for seed in range(16):
        rng, data = soup(seed)
        words = np.frombuffer(bytes(data), "<u8")
        plain: Any = ref.ArrayMemory(words)
        memory = PhysicalMemory.from_array(words.copy())
        if placed:
            where = Placed(rng, bytes(data), tmp_path / "file")
            memory = where.memory
            plain = ref.SegmentedMemory(ref.ArrayMemory(words), where.pieces)
        width = rng.choice([36, 40, 52])
        want = spec.rows(plain, maxphyaddr=width)
        assert listed(root_rows(memory, maxphyaddr=width, threads=1 + seed % 3)) == want
        for row in want:
            seen[row[1]] += 1
        assert listed(root_rows(memory, 1 << seed % 4, maxphyaddr=width)) == [row for row in want if row[1] == seed % 4]
    assert all(seen.values()), seen


# ---- real memory -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not GUESTS, reason="skipped: no recorded guests; FASTMMU_GUESTS names the folder")
@pytest.mark.parametrize("place", [meta.parent for meta in GUESTS], ids=lambda place: place.name)
def test_recorded_guests(place: Path) -> None:
    """The CR3 of the recording is first, with as many pages as it maps."""
    guest = read_guest(place)
    first = find_roots(guest.memory)[0]
    space = AddressSpace(guest.memory, first.state())
    assert (first.address, first.mode) == (guest.state.cr3, guest.state.mode)
    assert first.pages == len(guest.expected["va"]) == len(space.mappings())
    assert first.user == np.count_nonzero(space.mappings().user)
    assert f"{first.pages:,} pages" in first.reason
    assert first.eptp is None


@pytest.mark.skipif(not IMAGES.is_dir(), reason="skipped: no images; FASTMMU_FILES names the folder")
@pytest.mark.parametrize(
    "name", ["qemu_core.elf.zst", "kdump_zlib.zst", "lime.zst", "avml.zst", "windows_full.dmp.zst"]
)
def test_images(name: str) -> None:
    """The address space that runs, and the tables that the boot left."""
    roots = find_roots(open_image(IMAGES / name).memory)
    assert [(root.address, root.kind, root.pages) for root in roots] == [
        (0x1_0000_0000, "4-level", 115),
        (0x10_1000, "4-level", 1024),
    ]


@pytest.mark.parametrize("place", [meta.parent for meta in SAMPLES], ids=lambda place: place.name)
def test_samples_of_guests(place: Path) -> None:
    guest = read_guest(place)
    found = [root.address for root in find_roots(guest.memory) if root.mode == guest.state.mode]
    assert guest.state.cr3 in found or place.name == "pae_user"  # too few of its tables are there
    assert found


# ---- systems that are built ------------------------------------------------------------------------------------------


class System:
    """Tables, taken from the end of memory downwards; data below."""

    def __init__(self, nbytes: int = 4 << 20) -> None:
        self.memory = PhysicalMemory(nbytes)
        self.free = nbytes

    def table(self) -> int:
        self.free -= 0x1000
        return self.free

    def map(self, root: int, va: int, pa: int, flags: int, *, levels: int = 4, upper: int = 0x67, n: int = 1) -> None:
        for k in range(n):
            table = root
            for level in range(levels, 1, -1):
                at = table + 8 * (va + 4096 * k >> 12 + 9 * (level - 1) & 511)
                entry = self.memory.read64(at)
                if not entry:
                    entry = self.table() | upper
                    self.memory.write64(at, entry)
                table = entry & 0xF_FFFF_FFFF_F000
            self.memory.write64(table + 8 * (va + 4096 * k >> 12 & 511), pa + 4096 * k | flags)


KERNEL, USER = 0xFFFF_FFFF_8100_0000, 0x40_0000


def test_processes_share_the_kernel_half_and_kpti_has_pairs() -> None:
    system = System()
    system.free -= 0x1000 * (system.free >> 12 & 1)
    roots = []
    kernel_half: list[int] = []
    for process in range(3):
        user, kernel = system.table(), system.table()  # side by side, the kernel's at an even page
        roots.append(kernel)
        if not process:
            system.map(kernel, KERNEL, 0x1_0000, 0x161, n=60)
            kernel_half = system.memory.u64[(kernel >> 3) + 256 : (kernel >> 3) + 512].tolist()
        system.map(kernel, USER, 0x8_0000 + 0x1_0000 * process, 0x8000_0000_0000_0067, n=8)
        for half in (kernel, user):
            system.memory.u64[(half >> 3) + 256 : (half >> 3) + 512] = kernel_half
        entry = system.memory.read64(kernel)
        system.memory.write64(user, entry)
        system.memory.write64(kernel, entry | 1 << 63)
        system.free -= 0x1000 * (system.free >> 12 & 1)
    found = find_roots(system.memory)
    assert {root.address for root in found} == {address for kernel in roots for address in (kernel, kernel + 0x1000)}
    assert {root.address: root.pair for root in found} == {root.address: root.address ^ 0x1000 for root in found}
    assert [root.shared for root in found] == [6] * 6
    assert "KPTI: kernel table" in next(root for root in found if root.address == roots[0]).reason


def test_a_self_map_and_five_levels() -> None:
    system = System()
    root = system.table()
    system.map(root, KERNEL, 0x1_0000, 0x121, n=20)
    system.memory.write64(root + 8 * 0x1ED, root | 0x8000_0000_0000_0063)
    five = system.table()
    system.map(five, 0xFF11_0000_0000_0000, 0x4_0000, 0x121, levels=5, n=20)
    found = {root.address: root for root in find_roots(system.memory)}
    assert {each.address: each.kind for each in found.values()} == {root: "4-level", five: "5-level"}
    assert found[root].self_map == 0x1ED
    assert found[five].state().mode == fastmmu.find_roots(system.memory, kinds=["5-level"])[0].mode
    assert find_roots(system.memory, kinds=["PAE", "32-bit", "EPT"]) == []


@pytest.mark.parametrize("levels", [4, 5])
def test_an_ept_and_the_guest_below_it(levels: int) -> None:
    """The guest is found in the memory that the EPT gives it, and its CR3 is a guest-physical address."""
    host = System(8 << 20)
    root = host.table()
    host.map(root, 0, 0x20_0000, 0x37, levels=levels, upper=7, n=256)  # 1 MB of the guest
    inside = System(1 << 20)
    cr3 = inside.table()
    inside.map(cr3, KERNEL, 0x1_0000, 0x121, n=20)
    host.memory.u8[0x20_0000:0x30_0000] = inside.memory.u8
    (found,) = find_roots(host.memory, kinds=["EPT"])
    assert (found.address, found.levels, found.mode) == (root, levels, None)
    assert "100 % write-back" in found.reason
    assert found.eptp is not None
    with pytest.raises(fastmmu.ConfigError, match="root of an EPT"):
        found.state()
    guest = fastmmu.space.guest_memory(host.memory, found.eptp)
    assert guest.read(0, 1 << 20) == inside.memory.u8.tobytes()
    (below,) = find_roots(guest)
    assert below.address == cr3
    space = AddressSpace(host.memory, below.state(), found.eptp)
    assert len(space.mappings()) == 20


def test_noise_has_no_roots() -> None:
    rng = np.random.default_rng(1)
    noise = [rng.integers(0, 1 << 64, 1 << 18, np.uint64), rng.integers(0, 256, 1 << 18).astype(np.uint64)]
    text = np.frombuffer((b"The quick brown fox jumps over the lazy dog. " * (1 << 16))[: 1 << 21], np.uint64)
    for words in (*noise, text):
        assert find_roots(PhysicalMemory.from_array(words.copy()), threads=2) == []


def test_what_is_refused() -> None:
    with pytest.raises(fastmmu.ConfigError, match="'5 levels' is none; choose from 5-level"):
        find_roots(PhysicalMemory(4096), kinds=["5 levels"])
    assert find_roots(PhysicalMemory(8)) == []
