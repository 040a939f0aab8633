"""The kernel of the data caches and the executable specification find every line at the same place."""

from __future__ import annotations

import itertools
import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.cache import CacheHierarchy
from fastmmu.cache.description import CacheDescription
from fastmmu.cache.names import LEVELS, walk_bin_edges
from fastmmu.reference.cache.hierarchy import Hierarchy
from tests.support.cache_descriptions import SMALL, WALKS, descriptions


def check(description: CacheDescription, seed: int, n: int) -> None:
    kernel, spec = CacheHierarchy(description), Hierarchy(description)
    rng = random.Random(seed)
    size = 64 * rng.choice([8, 40, 150, 600])
    for i in range(n):
        what = rng.random()
        near = rng.randrange(size) if rng.random() < 0.7 else rng.randrange(0, size, 64 * rng.choice([1, 4, 7]))
        if what < 0.6:
            access = rng.choice(["r", "r", "w", "rw", "x"])
            cause = rng.choice(["read", "write", "fetch", "kernel", "vmm"])
            assert kernel.use(near, access, cause) == spec.use(near, access, cause), f"reference {i}"
        elif what < 0.8:  # several of a program, in one call
            hpa = np.array([rng.randrange(size) for _ in range(4)], np.uint64)
            op = np.array([rng.choice([0, 0, 1, 2, 3]) for _ in range(4)], np.uint8)
            names = [(("r", "read"), ("w", "write"), ("rw", "write"), ("x", "fetch"))[o] for o in op]
            levels = [spec.use(int(a), *names[j]) for j, a in enumerate(hpa)]
            assert kernel.access(hpa, op) == tuple(levels.count(level) for level in LEVELS), f"reference {i}"
        else:
            n_steps = rng.randrange(6)
            steps = [(rng.choice(WALKS), rng.randrange(0, size, 8), rng.random() < 0.1) for _ in range(n_steps)]
            assert kernel.walk(steps) == spec.walk(steps), f"reference {i}, a walk"
        if i % 40 == 0 or i == n - 1:
            assert kernel.lines() == spec.lines(), f"after reference {i}"
            assert kernel.open_rows() == spec.open
    counted = kernel.counters()
    causes = {cause for cause, _ in spec.found}
    assert counted["references"] == {c: tuple(spec.found[c, level] for level in LEVELS) for c in counted["references"]}
    assert counted["cycles"] == {c: spec.cycles[c] for c in causes}
    assert set(counted["references"]) == causes
    assert counted["written"] == {level: spec.written[level] for level in ("l1", "l2", "l3", "memory")}
    assert counted["walks"] == len(spec.walks)
    assert counted["walk_cycles"] == sum(spec.walks)
    bins = [walk_bin_edges(i) for i in range(128)]
    expected = [(*edges, sum(edges[0] <= w <= edges[1] for w in spec.walks)) for edges in bins]
    assert list(counted["walk_latency"]) == [row for row in expected if row[2]]


@settings(max_examples=150, deadline=None)
@given(description=descriptions(), seed=st.integers(0, (1 << 32) - 1))
def test_kernel_equals_specification(description: CacheDescription, seed: int) -> None:
    check(description, seed, 400)


@pytest.mark.parametrize("policy", ["lru", "plru", "srrip"])
@pytest.mark.parametrize("inclusion", ["inclusive", "exclusive", "neither"])
@pytest.mark.parametrize("switches", [{}, {"walker": "l2"}, {"tables": ("l2", "l3")}, {"bypass": ("l1",)},
                                      {"l2_inclusive": True}, {"bypass": ("l1", "l2", "l3"), "tables": ("l3",)}],
                         ids=str)  # fmt: skip
def test_every_mode(policy: str, inclusion: str, switches: dict[str, Any]) -> None:
    parts = {level: msgspec.structs.replace(getattr(SMALL, level), policy=policy) for level in ("l1d", "l2", "l3")}
    check(msgspec.structs.replace(SMALL, inclusion=inclusion, **parts, **switches), 7, 1500)


def test_edges_of_bins_meet() -> None:
    edges = [walk_bin_edges(i) for i in range(128)]
    assert edges[0] == (0, 0)
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(edges))
    assert edges[-1][1] >= 1 << 32
