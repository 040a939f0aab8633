"""Memory that nothing touches costs nothing: what is resident, measured in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fastmmu
from fastmmu.image.pages import _dense
from tests.support.recordings import all_of, sample_of
from tests.support.resident import ROLLUP, Sizes, measured

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MB = 1024


def guests() -> list[Path]:
    every = [all_of("guests", "FASTMMU_GUESTS"), sample_of("guests")]
    return [path.parent for place in every for path in sorted(place.glob("*/meta.json"))]


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    if not ROLLUP.exists():
        pytest.skip(f"skipped: no {ROLLUP}")
    return measured(guests())


def test_what_is_touched_sparsely(sizes: Sizes) -> None:
    """A page of 4 KB for each word, not 2 MB."""
    assert 4000 <= sizes["sparse"][0] < 6 * MB
    assert 4000 <= sizes["sparse, small"][0] < 6 * MB
    assert sizes["nothing"][0] < MB
    assert sizes["sparse"][1] == sizes["sparse, small"][1] == 0


def test_idle_machines(sizes: Sizes) -> None:
    """Of 4 GB: the guest kernel's first tables, and what is made first of the VMM's."""
    found = {name: kb for name, (kb, _) in sizes.items() if name.startswith("machine")}
    assert len(found) == 5
    assert max(found.values()) < MB, found
    assert sizes["tlb"][0] < MB


def test_machines_that_run(sizes: Sizes) -> None:
    """Each of some 60 or 600 tables of the guest is resident, and the VMM's for them; in the second case they become
    huge pages, and the last of those may not be full."""
    assert sizes["few tables"][0] < 2 * MB
    assert sizes["few tables"][1] == 0
    assert 2400 <= sizes["many tables"][0] < 9 * MB


def test_recorded_guests(sizes: Sizes) -> None:
    """The pages that the recording has."""
    found = {name: kb for name, (kb, _) in sizes.items() if name.startswith("guest")}
    if not found:
        pytest.skip("skipped: no recorded guests; FASTMMU_GUESTS names a directory with some")
    for name, kb in found.items():
        assert kb < 4 * int(name.split()[-1]) + MB, (name, kb)


def test_images(sizes: Sizes) -> None:
    assert 4000 <= sizes["sparse image"][0] < 6 * MB
    assert sizes["sparse image"][1] == 0
    assert 16 * MB <= sizes["dense image"][0] < 19 * MB


def test_walked_tables(sizes: Sizes) -> None:
    """Tables that translations come through by the million: where they lie 2 MB apart each stays 4 KB."""
    assert sizes["sparse tables, walked"][0] < 5 * MB
    assert sizes["sparse tables, walked"][1] == 0
    assert sizes["dense tables, walked"][0] < 13 * MB
    assert sizes["dense tables"][1] == 0


def test_huge_pages_where_tables_and_images_are_dense(sizes: Sizes) -> None:
    if not THP.exists() or "[never]" in THP.read_text():
        pytest.skip("skipped: the host gives no huge pages")
    assert sizes["dense tables, walked"][1] >= 4 * MB
    assert sizes["dense image"][1] >= 12 * MB
    assert sizes["many tables"][1] >= 2 * MB


def test_which_blocks_of_an_image_are_dense() -> None:
    """384 of 512 pages; neighbours together; the longest first."""
    block = np.arange(512)
    assert _dense(np.array([], np.int64)) == []
    assert _dense(block[:383]) == []
    assert _dense(block[:384].astype(np.uint64)) == [(0, 1)]
    frames = np.concatenate([block + 512 * i for i in (1, 3, 4, 5, 9, 10)] + [block[:100] + 512 * 7])
    assert _dense(np.sort(frames)) == [(3, 6), (9, 11), (1, 2)]


def test_advice_is_taken_anywhere() -> None:
    """Ranges as those of a slice; it changes nothing that can be read."""
    memory = fastmmu.PhysicalMemory((8 << 20) + 8)
    memory.u64[:] = np.arange(memory.nbytes // 8, dtype=np.uint64)
    for start, stop in ((0, None), (1, 2), (-4096, None), (3 << 20, 1 << 20), (1 << 20, 1 << 60), (5 << 20, -1)):
        memory.advise_huge_pages(start, stop)
    for other in (fastmmu.PhysicalMemory.from_array(bytearray(8 << 20)), fastmmu.PhysicalMemory(8)):
        other.advise_huge_pages()
    assert np.array_equal(memory.u64, np.arange(memory.nbytes // 8, dtype=np.uint64))
    assert memory.u8.ctypes.data % (2 << 20) == 0
