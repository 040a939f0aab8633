"""Data caches of few lines, drawn: every inclusion, policy and switch."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from fastmmu.cache.description import Cache, CacheDescription, Memory
from fastmmu.cache.names import CAUSE_NAMES
from fastmmu.errors import ConfigError

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


SMALL = CacheDescription(
    name="small",
    l1d=Cache(1024, 4, 4),
    l1i=Cache(512, 2, 4),
    l2=Cache(2048, 8, 14),
    l3=Cache(64 * 5 * 11, 11, 44),
    memory=Memory(banks=3, row_bytes=256),
)
