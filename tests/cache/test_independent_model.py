"""Counts by level are those of a model that knows nothing of fastmmu: true LRU in plain Python, a dict a set.

FASTMMU_CACHE_REFERENCES says how many references each stream has (2000000 in the release's own check).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import pytest

from fastmmu.cache import CacheHierarchy, caches
from fastmmu.ops import Op
from tests.support.cache_streams import STREAMS, stream

N = int(os.environ.get("FASTMMU_CACHE_REFERENCES", "60000"))

Sets = list["OrderedDict[int, bool]"]


def empty(size: int, ways: int) -> tuple[Sets, int]:
    return [OrderedDict() for _ in range(size // 64 // ways)], ways


def lru(
    sizes: dict[str, tuple[int, int]], inclusion: str, l2_inclusive: bool, lines: Iterator[tuple[int, int]]
) -> list[int]:
    """How many of (line, operation) are found in L1, L2, L3, memory. Values of the dicts: whether the line is dirty."""
    (data, nd), (code, nc), (second, n2), (third, n3) = (empty(*sizes[c]) for c in ("l1d", "l1i", "l2", "l3"))
    counts = [0, 0, 0, 0]

    def put3(line: int, dirty: bool) -> None:
        mine = third[line % len(third)]
        if line in mine:
            mine[line] |= dirty
            mine.move_to_end(line)
            return
        if len(mine) == n3:
            gone, _ = mine.popitem(last=False)
            if inclusion == "inclusive":
                for sets in (second, data, code):
                    sets[gone % len(sets)].pop(gone, None)
        mine[line] = dirty

    def put2(line: int, dirty: bool) -> None:
        mine = second[line % len(second)]
        if len(mine) == n2:
            gone, was = mine.popitem(last=False)
            if l2_inclusive:
                was |= data[gone % len(data)].pop(gone, False)
                code[gone % len(code)].pop(gone, None)
            if was or inclusion == "exclusive":
                put3(gone, was)
        mine[line] = dirty

    for line, op in lines:
        first, n1 = (code, nc) if op == Op.FETCH else (data, nd)
        writes = op in (Op.WRITE, Op.MODIFY)
        mine = first[line % len(first)]
        if line in mine:
            counts[0] += 1
            mine[line] |= writes
            mine.move_to_end(line)
            continue
        near, far = second[line % len(second)], third[line % len(third)]
        if line in near:
            counts[1] += 1
            near.move_to_end(line)
        else:
            dirty = False
            if line in far:
                counts[2] += 1
                far.move_to_end(line)
                if inclusion == "exclusive":
                    dirty = far.pop(line)
            else:
                counts[3] += 1
                if inclusion != "exclusive":
                    put3(line, False)
            put2(line, dirty)
        if len(mine) == n1:
            gone, was = mine.popitem(last=False)
            if was:
                below = second[gone % len(second)]
                if gone in below:
                    below[gone] = True
                    below.move_to_end(gone)
                else:
                    if inclusion == "exclusive":
                        third[gone % len(third)].pop(gone, None)
                    put2(gone, True)
        mine[line] = writes
    return counts


@pytest.mark.parametrize("text", ["skylake", "skylake inclusion=neither", "zen2 l3=1536k/12", "icelake l3=11m/11"])
@pytest.mark.parametrize("name", STREAMS)
def test_counts_by_level_equal_an_independent_lru(name: str, text: str) -> None:
    d = caches(text)
    assert d is not None
    assert d.l2 is not None
    assert d.l3 is not None
    hpa, op = stream(name, N)
    parts = {"l1d": d.l1d, "l1i": d.l1i, "l2": d.l2, "l3": d.l3}
    sizes = {level: (part.size, part.ways) for level, part in parts.items()}
    lines = zip((hpa >> np.uint64(6)).tolist(), op.tolist(), strict=True)
    expected = lru(sizes, d.inclusion, d.l2_inclusive, lines)
    l1, l2, l3, row, dram = CacheHierarchy(d).access(hpa, op)
    assert [l1, l2, l3, row + dram] == expected
    assert sum(expected) == N
