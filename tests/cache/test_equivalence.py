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
from fastmmu.cache.description import Cache, CacheDescription, Memory
from fastmmu.cache.names import CAUSE_NAMES, LEVELS, walk_bin_edges
from fastmmu.errors import ConfigError
from fastmmu.reference.cache.hierarchy import Hierarchy

WALKS = [name for name in CAUSE_NAMES.values() if name.startswith(("guest", "ept"))]
POLICY = st.sampled_from(["lru", "plru", "srrip"])


def a_cache(most_ways: int, sets: st.SearchStrategy[int], latency: int) -> st.SearchStrategy[Cache]:
    return st.builds(
        lambda ways, sets, policy: Cache(64 * ways * sets, ways, latency, policy),
        st.integers(1, most_ways), sets, POLICY,
    )  # fmt: skip


@st.composite
def descriptions(draw: st.DrawFn) -> CacheDescription:
    """Every inclusion, policy and switch, of few lines, so that all of them make room."""
    two = st.sampled_from([1, 2, 4])
    subsets = st.lists(st.sampled_from(["l1", "l2", "l3"]), unique=True)
    fields: dict[str, Any] = {
        "name": "drawn",
        "l1d": draw(a_cache(5, two, 4)),
        "l1i": draw(a_cache(3, two, 4)),
        "l2": draw(st.one_of(st.none(), a_cache(20, two, 14), a_cache(4, two, 14))),
        "l3": draw(st.one_of(st.none(), a_cache(20, st.integers(1, 7), 44), a_cache(33, st.integers(1, 3), 44))),
        "memory": draw(st.builds(Memory, banks=st.integers(1, 5), row_bytes=st.sampled_from([64, 256, 512]))),
        "inclusion": draw(st.sampled_from(["inclusive", "exclusive", "neither"])),
        "l2_inclusive": draw(st.booleans()),
        "walker": draw(st.sampled_from(["l1", "l2"])),
        "tables": tuple(level for level in draw(subsets) if level != "l1"),
        "bypass": tuple(draw(subsets)),
    }
    for mend in ({}, {"bypass": ()}, {"walker": "l1"}, {"walker": "l1", "inclusion": "neither", "bypass": ()}):
        try:
            return CacheDescription(**(fields | mend))
        except ConfigError:
            continue
    return CacheDescription(**(fields | {"walker": "l1", "inclusion": "neither", "bypass": (), "l2_inclusive": False}))


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


SMALL = CacheDescription(
    name="small",
    l1d=Cache(1024, 4, 4),
    l1i=Cache(512, 2, 4),
    l2=Cache(2048, 8, 14),
    l3=Cache(64 * 5 * 11, 11, 44),
    memory=Memory(banks=3, row_bytes=256),
)


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
