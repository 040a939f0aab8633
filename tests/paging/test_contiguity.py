"""Histograms of contiguous runs, against a count page by page."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastmmu
from fastmmu.dtypes import MAPPING_DTYPE
from fastmmu.errors import ConfigError, WrongTypeError
from fastmmu.paging.contiguity import Contiguity

rows = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 1]), st.sampled_from([0, 0, 0, 1, -5]), st.sampled_from([1, 1, 1, 512])),
    max_size=60,
)


def table(steps: list[tuple[int, int, int]]) -> np.ndarray:
    """Mappings from gaps before each, in linear and physical pages, and their pages."""
    found, va, pa = np.zeros(len(steps), MAPPING_DTYPE), 0xFFFF_8000_0000_0000, 1 << 40
    for row, (gap, jump, pages) in zip(found, steps, strict=True):
        va, pa = va + (gap << 12), pa + (jump << 12)
        row["va"], row["pa"], row["gpa"], row["size"] = va, pa, pa ^ (1 << 30), pages << 12
        va, pa = va + (pages << 12), pa + (pages << 12)
    return found


def by_pages(found: np.ndarray) -> dict[int, int]:
    """Runs by length: every page of 4 KB by itself."""
    pages = [(int(row["va"]) + i, int(row["pa"]) + i) for row in found for i in range(0, int(row["size"]), 4096)]
    lengths = [1] if pages else []
    for one, other in pairwise(pages):
        if (other[0] - one[0], other[1] - one[1]) == (4096, 4096):
            lengths[-1] += 1
        else:
            lengths.append(1)
    return dict(Counter(lengths))


@given(rows, st.lists(st.integers(0, 60), max_size=4))
def test_runs_are_those_of_single_pages(steps: list[tuple[int, int, int]], cuts: list[int]) -> None:
    """In one array or in several, whatever their ends."""
    found = table(steps)
    wanted = by_pages(found)
    ends = [0, *sorted(min(cut, len(found)) for cut in cuts), len(found)]
    for given_ in (found, iter([found[a:b] for a, b in pairwise(ends)])):
        runs = fastmmu.contiguity(given_)
        assert dict(zip(runs.lengths.tolist(), runs.runs.tolist(), strict=True)) == wanted
        assert runs.pages == sum(length * n for length, n in wanted.items())
        long = sum(length * n for length, n in wanted.items() if length >= 8)
        assert runs.share(8) == (long / runs.pages if runs.pages else 0.0)
        assert sum(n for _, _, n, _ in runs.bins()) == sum(wanted.values())
        assert sum(pages for *_, pages in runs.bins()) == runs.pages
        assert all(low <= pages / n <= high for low, high, n, pages in runs.bins())


def test_the_guests_own() -> None:
    found = table([(0, 0, 1)] * 4)
    found["gpa"] = found["va"][::-1] & np.uint64(0xFFFF_F000)
    assert fastmmu.contiguity(found).lengths.tolist() == [4]
    assert fastmmu.contiguity(found, by="gpa").lengths.tolist() == [1]


@pytest.mark.parametrize("mappings", [None, 3, "text", [1], np.zeros(3), [np.zeros((2, 2), MAPPING_DTYPE)]])
def test_what_are_no_mappings(mappings: object) -> None:
    with pytest.raises(WrongTypeError, match="mappings"):
        fastmmu.contiguity(mappings)


def test_no_pages() -> None:
    assert fastmmu.contiguity(np.zeros(0, MAPPING_DTYPE)).share(1) == 0.0
    assert isinstance(fastmmu.contiguity([]), Contiguity)
    with pytest.raises(ConfigError, match="pa"):
        fastmmu.contiguity([], by="hpa")  # type: ignore[arg-type]
