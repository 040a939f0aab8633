"""Address spaces as objects: reads, the reverse index, the scan for root tables; volatility3 beside itself.

Of the scan an item is a byte; nothing else does it in Python. Its memory is half zeros, half noise, with the tables of
an address space in it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np
import pytest

import fastmmu
from bench.race import Race, Rival, Scale, timed
from bench.spaces import Space


@pytest.mark.benchmark(group="find_roots, a byte")
@pytest.mark.parametrize("threads", [1, 2])
def test_find_roots(race: Race, space: Callable[[int, bool], Space], scale: Scale, threads: int) -> None:
    at = space(scale.of(2000, 20_000, 20_000), False)
    nbytes = scale.of(16 << 20, 512 << 20, 2 << 30)
    memory = fastmmu.PhysicalMemory(at.memory.nbytes + nbytes)
    memory.u64[: at.memory.nbytes // 8] = at.memory.u64
    noise = np.random.default_rng(1).integers(0, 1 << 64, 1 << 18, np.uint64)
    for start in range(at.memory.nbytes // 8, memory.nbytes // 8 - len(noise) + 1, 2 * len(noise)):
        memory.u64[start : start + len(noise)] = noise
    found = race(lambda: fastmmu.find_roots(memory, threads=threads), memory.nbytes)
    assert at.state.cr3 in [root.address for root in found]


@pytest.mark.benchmark(group="reverse index, a row")
@pytest.mark.parametrize(("pages", "threads"), [(65_536, 1), (2_000_000, 1), (2_000_000, 2)])
def test_index(race: Race, space: Callable[[int, bool], Space], scale: Scale, pages: int, threads: int) -> None:
    """The rival: the same rows sorted by NumPy. Threads share the enumeration, one sorts."""
    at = space(min(pages, scale.of(20_000, pages, pages)), False)
    address_space = fastmmu.AddressSpace(at.memory, at.state)
    rows = fastmmu.mappings(at.memory, at.state)
    numpy = Rival(
        "mappings, numpy.argsort", timed(lambda: np.argsort(fastmmu.mappings(at.memory, at.state).pa)), at.pages
    )
    race(lambda: address_space.index(threads=threads), at.pages, [numpy], fresh=address_space.forget)
    assert address_space.where(int(rows.pa[5])).va.tolist() == [int(rows.va[5])]


@pytest.mark.benchmark(group="read_many, eight bytes")
def test_read_many(race: Race, space: Callable[[int, bool], Space], scale: Scale) -> None:
    """The rival translates, and takes the words by NumPy."""
    at = space(scale.of(20_000, 65_536, 65_536), False)
    memory = fastmmu.PhysicalMemory((int(at.frames.max()) + 1) << 12)
    memory.u64[: at.memory.nbytes // 8] = at.memory.u64
    address_space = fastmmu.AddressSpace(memory, at.state)
    va = at.addresses(scale.of(1000, 1_000_000, 1_000_000)) & ~np.uint64(7)
    other = Rival(
        "translate, then NumPy", timed(lambda: memory.u64[address_space.translate(va).pa >> np.uint64(3)]), len(va)
    )
    found = race(lambda: address_space.read_many(va, 8), len(va), [other])
    assert np.array_equal(found.view("<u8")[:, 0], memory.u64[at.physical(va) >> np.uint64(3)])


@pytest.mark.benchmark(group="volatility3: mapping of an address space, a page")
def test_volatility(race: Race, space: Callable[[int, bool], Space], scale: Scale) -> None:
    """Its layer with fastmmu beside its own."""
    contexts = pytest.importorskip("volatility3.framework.contexts")
    intel = pytest.importorskip("volatility3.framework.layers.intel")
    physical = pytest.importorskip("volatility3.framework.layers.physical")
    from fastmmu.adapters import volatility

    at = space(scale.of(2000, 20_000, 65_536), False)
    buffer = mmap.mmap(-1, (int(at.frames.max()) + 1) << 12)
    buffer[: at.memory.nbytes] = at.memory.u8.tobytes()

    def mapping(ours: bool) -> list[object]:
        volatility.install() if ours else volatility.uninstall()
        context = contexts.Context()
        context.add_layer(physical.BufferDataLayer(context, "memory", "memory", buffer))
        context.config["layer.memory_layer"], context.config["layer.page_map_offset"] = "memory", at.state.cr3
        layer = intel.Intel32e(context, "layer", "layer")
        return list(layer.mapping(0, layer.maximum_address, ignore_errors=True))

    try:
        found = race(lambda: mapping(True), at.pages, [Rival("its own", timed(lambda: mapping(False)), at.pages)])
        assert found == mapping(False)
    finally:
        volatility.uninstall()
