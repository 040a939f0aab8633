"""Data caches that were written and read go on as the ones that were written; what is no cache is refused."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmu.cache import CacheHierarchy
from fastmmu.errors import CheckpointError
from fastmmu.machine.checkpoint.caches import caches_state, restore_caches
from tests.support.cache_streams import stream

SHAPES = ["skylake l3=96k/12", "zen2 policy=plru,plru,srrip l3=1m/16 tables=l3", "skylake policy=srrip l3=none l2=none"]


@pytest.mark.parametrize("text", SHAPES)
@pytest.mark.parametrize("name", ["zipf", "uniform"])
def test_they_go_on(name: str, text: str) -> None:
    hpa, op = stream(name, 30_000)
    whole, first, second = (CacheHierarchy(text) for _ in range(3))
    whole.access(hpa, op)
    first.access(hpa[:12_345], op[:12_345])
    first.walk([("guest4", 0x5000), ("ept0.1", 0x7000, True)])
    whole_walk = CacheHierarchy(text)
    whole_walk.access(hpa[:12_345], op[:12_345])
    whole_walk.walk([("guest4", 0x5000), ("ept0.1", 0x7000, True)])
    restore_caches(second, *caches_state(first))
    assert second.lines() == first.lines()
    assert second.open_rows() == first.open_rows()
    for one in (first, second, whole_walk):
        one.access(hpa[12_345:], op[12_345:])
    assert second.counters() == first.counters() == whole_walk.counters()
    assert second.lines() == first.lines() == whole_walk.lines()


@pytest.mark.parametrize("text", SHAPES)
def test_another_description_is_refused(text: str) -> None:
    state = caches_state(CacheHierarchy(text))
    with pytest.raises(CheckpointError, match="caches"):
        restore_caches(CacheHierarchy("skylake"), *state)


@pytest.mark.parametrize("text", SHAPES)
def test_what_is_no_cache_is_refused_or_harmless(text: str) -> None:
    """Any byte may be another: either it is refused, or the caches work, whatever they hold."""
    caches = CacheHierarchy(text)
    hpa, op = stream("zipf", 20_000)
    caches.access(hpa, op)
    names, arrays = caches_state(caches)
    rng, refused = np.random.default_rng(3), 0
    for _ in range(60):
        spoiled = {name: array.copy() for name, array in arrays.items()}
        for name in spoiled:
            if name.endswith(".base"):
                at = rng.integers(0, min(len(spoiled[name]), 4096), 3)
                spoiled[name].view(np.uint8)[at] ^= rng.integers(1, 256, 3).astype(np.uint8)
        new = CacheHierarchy(text)
        try:
            restore_caches(new, names, spoiled)
        except CheckpointError:
            refused += 1
            continue
        assert sum(new.access(hpa, op)) == len(hpa)
    assert refused > 30


def test_a_line_twice_or_elsewhere_is_refused() -> None:
    caches = CacheHierarchy("skylake l3=none")
    for line in range(8):
        caches.use(line * 4096)
    names, arrays = caches_state(caches)
    keys = arrays["caches.l1d.base"].view(np.uint8)[16:80].view(np.uint64)
    assert [int(key) >> 3 for key in keys] == [line * 64 for line in range(8)]
    for value in (int(keys[0]), int(keys[1]) + 8, int(keys[1]) & ~1):
        spoiled = {name: array.copy() for name, array in arrays.items()}
        spoiled["caches.l1d.base"].view(np.uint8)[16:80].view(np.uint64)[1] = value
        with pytest.raises(CheckpointError, match="set 0 of the l1d cache is none"):
            restore_caches(CacheHierarchy("skylake l3=none"), names, spoiled)
