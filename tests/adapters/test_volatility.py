"""volatility3 with its layers taken over yields what it yields by itself, byte for byte and run for run."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu.adapters import volatility
from fastmmu.image import open_image, read_guest
from tests.support.recordings import all_of, sample_of

contexts = pytest.importorskip("volatility3.framework.contexts", reason="skipped: volatility3 is not installed")
intel = pytest.importorskip("volatility3.framework.layers.intel")
physical = pytest.importorskip("volatility3.framework.layers.physical")
scanners = pytest.importorskip("volatility3.framework.layers.scanners")

LAYERS = ["Intel32e", "LinuxIntel32e", "WindowsIntel32e"]
GUESTS = [
    *(sample_of("guests") / name for name in ("l4_user", "l4kpti_idle")),
    *(place for name in ("l4_user", "l4kpti_idle") if (place := all_of("guests", "FASTMMU_GUESTS") / name).is_dir()),
]
IMAGE = all_of("files", "FASTMMU_FILES") / "images/qemu_core.elf.zst"


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    yield
    volatility.uninstall()


def layer(kind: str, buffer: Any, cr3: int) -> Any:
    context = contexts.Context()
    context.add_layer(physical.BufferDataLayer(context, "memory", "memory", buffer))
    context.config["layer.memory_layer"] = "memory"
    context.config["layer.page_map_offset"] = cr3
    made = getattr(intel, kind)(context, "layer", "layer")
    context.add_layer(made)
    return made


def buffer_of(memory: fastmmu.PhysicalMemory, nbytes: int) -> mmap.mmap:
    buffer = mmap.mmap(-1, nbytes)
    for start, end in memory.ranges.tolist():
        buffer[start : min(end, nbytes)] = memory.read(start, min(end, nbytes) - start)
    return buffer


def both(kind: str, buffer: Any, cr3: int, ask: Any) -> tuple[Any, Any]:
    """By volatility3 alone, and with fastmmu."""
    volatility.uninstall()
    alone = ask(layer(kind, buffer, cr3))
    volatility.install()
    made = layer(kind, buffer, cr3)
    found = ask(made)
    assert "_fastmmu" in vars(made)
    return alone, found


def everything(made: Any) -> list[Any]:
    return list(made.mapping(0, made.maximum_address, ignore_errors=True))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("place", GUESTS, ids=lambda place: f"{place.parent.parent.name}-{place.name}")
def test_mappings_of_guests(kind: str, place: Path) -> None:
    guest = read_guest(place)
    alone, found = both(kind, buffer_of(guest.memory, guest.memory.nbytes), guest.state.cr3, everything)
    assert found == alone
    assert len(alone) > 50


@pytest.mark.skipif(not IMAGE.exists(), reason="skipped: no images; FASTMMU_FILES names the folder")
@pytest.mark.parametrize("kind", LAYERS)
def test_an_image_of_which_some_is_missing(kind: str) -> None:
    image = open_image(IMAGE)
    buffer = buffer_of(image.memory, 0x1_0200_0000 - 0x20_0000)  # the end of memory is cut off
    alone, found = both(kind, buffer, image.state().cr3, everything)
    assert found == alone
    assert len(alone) > 20


@pytest.mark.parametrize("kind", LAYERS)
def test_tables_with_entries_of_its_own_rules(kind: str) -> None:
    """Present or not, with reserved bits, one entry over and over: whatever each layer makes of it."""
    rng = np.random.default_rng(5)
    flags = np.array([0, 0x67, 0x63, 0x100, 0x162, 0x800, 0xC00, 0xC02, 0x80, 0xE7, 0x1E3], np.uint64)
    words = np.zeros(64 << 9, np.uint64)
    for table in range(1, 16):
        entry = rng.integers(0, 60, 512).astype(np.uint64) << np.uint64(12) | rng.choice(flags, 512)
        entry |= (rng.random(512) < 0.05).astype(np.uint64) << np.uint64(45 + table % 6)
        if table > 4:
            words[table << 9 : (table + 1) << 9] = entry
    words[1 << 9 : (1 << 9) + 3] = [0x2067, 0x2067, 0x3067]  # PML4, PDPTs, page directories
    words[(1 << 9) + 300] = 0x2067
    words[2 << 9 : (2 << 9) + 4] = [0x4067, 0x4067, 0x3067, 0x4000E7]
    words[3 << 9 : (3 << 9) + 2] = [0x4067, 0x10067]
    for i in range(12):
        words[(4 << 9) + 7 * i] = np.uint64((5 + i) << 12) | rng.choice(flags)
    words[10 << 9 : 11 << 9] = 0x7067
    words[16 << 9 : 17 << 9] = 0x8067
    alone, found = both(kind, words.tobytes(), 0x1000, everything)
    assert found == alone
    assert len(alone) > 100


def test_parts_and_scans() -> None:
    guest = read_guest(GUESTS[0])
    buffer = buffer_of(guest.memory, guest.memory.nbytes)

    rows = fastmmu.mappings(guest.memory, guest.state, start=0x40_0000, stop=1 << 30)
    needle = b"what is looked for"
    for pa in rows.pa[:3].tolist():
        buffer[pa + 100 : pa + 100 + len(needle)] = needle

    def parts(made: Any) -> list[Any]:
        asked = [(at, 1 << n) for at in (0x40_0123, 0xFFFF_8000_0005, 1 << 46) for n in (20, 33, 46)]
        return [list(made.mapping(at, n, True)) for at, n in asked]  # one of them goes behind the end

    def scan(made: Any) -> list[int]:
        return list(made.scan(made.context, scanners.BytesScanner(needle), sections=[(0x40_0000, 1 << 30)]))

    for ask in (parts, scan):
        alone, found = both("Intel32e", buffer, guest.state.cr3, ask)
        assert found == alone
        assert any(alone)
