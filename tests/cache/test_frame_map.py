"""The host's frames at the caches' door: a permutation of its pages, equal to the specification's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.cache import CacheHierarchy
from fastmmu.cache.frame_map import host_frame_plan, map_frames
from fastmmu.errors import ConfigError
from fastmmu.reference.cache.frame_map import frame_map

TEXTS = st.one_of(
    st.just("linear"),
    st.builds("shuffled:{}".format, st.integers(0, 99)),
    st.builds("buddy:{}:{}".format, st.sampled_from(["0", "0.25", ".5", "1"]), st.integers(0, 99)),
)


@given(TEXTS, st.integers(0, 40 << 21), st.sampled_from([1 << 12, 1 << 21]), st.lists(st.integers(0, 50 << 21)))
@settings(deadline=None)
def test_as_the_specification(text: str, nbytes: int, page: int, hpa: list[int]) -> None:
    share, seed = host_frame_plan(text)
    wanted = frame_map(share, seed, nbytes, page)
    assert map_frames(text, nbytes, page, np.array(hpa, np.uint64)).tolist() == [wanted(one) for one in hpa]


@pytest.mark.parametrize("page", [1 << 12, 1 << 21])
@pytest.mark.parametrize("text", ["linear", "shuffled:3", "buddy:0.3", "buddy:1:9"])
def test_it_is_a_bijection_in_which_pages_stay_whole(text: str, page: int) -> None:
    nbytes = 300 << 21
    hpa = np.arange(0, nbytes + (1 << 20), 4096, np.uint64)
    found = map_frames(text, nbytes, page, hpa)
    assert np.array_equal(np.sort(found), hpa)
    inside = map_frames(text, nbytes, page, hpa + np.uint64(0x123))
    assert np.array_equal(inside, found + np.uint64(0x123))
    blocks = found[: nbytes >> 12].reshape(-1, 512)
    whole = ((blocks[:, 0] % (1 << 21) == 0) & (blocks == blocks[:, :1] + (np.arange(512) << 12)).all(axis=1)).sum()
    share, _ = host_frame_plan(text)
    assert whole == (300 if page == 1 << 21 else 300 - round(300 * (share or 0)))
    assert np.array_equal(found[nbytes >> 12 :], hpa[nbytes >> 12 :])


@pytest.mark.parametrize("text", ["", "buddy", "buddy:2", "buddy:..", "shuffled:-1", "random", None, 3])
def test_what_is_none(text: object) -> None:
    with pytest.raises(ConfigError, match="host_frames"):
        host_frame_plan(text)


@pytest.mark.parametrize("page", [1 << 12, 1 << 21])
def test_caches_see_the_frames(page: int) -> None:
    """A hierarchy with a map does what one without does with addresses that were mapped before."""
    rng, nbytes = np.random.default_rng(5), 64 << 21
    hpa = rng.integers(0, nbytes - 8, 20_000).astype(np.uint64) & ~np.uint64(7)
    op = rng.integers(0, 3, len(hpa)).astype(np.uint8)
    one, other = CacheHierarchy("skylake l3=none"), CacheHierarchy("skylake l3=none")
    one.use_frames("buddy:0.5:4", nbytes, page)
    one.access(hpa, op)
    other.access(map_frames("buddy:0.5:4", nbytes, page, hpa), op)
    assert one.counters() == other.counters()
    assert one.lines() == other.lines()
