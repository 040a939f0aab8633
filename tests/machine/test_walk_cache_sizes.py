"""Sizes of the walk caches, a level apart from the others: what a walk reads goes the way that they say.

Each cache stands for references of a walk (Bhargava, Serebrin, Spadini, Manne, "Accelerating two-dimensional page walks
for virtualized systems", ASPLOS 2008): the larger, the fewer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmu import Config, simulate
from fastmmu.machine.result import Result

PAGE = np.uint64(4096)
RNG = np.random.default_rng(11)
SPREAD = (RNG.integers(0, 1 << 20, 20000).astype(np.uint64) * PAGE) + np.uint64(1 << 32)
"""At random over 4 GB: 2048 page directory entries, 4 page directories."""
NONE = {"psc": "none", "epsc": "none", "gpm": "off"}


def ran(mmu: Any, **sizes: str) -> Result:
    return simulate(SPREAD, Config(mmu=mmu, premapped=True, **{**NONE, **sizes}))


def refs(result: Result) -> tuple[int, int]:
    return result.counters["guest_walk_refs"], result.counters["ept_walk_refs"]


def test_without_any_a_walk_has_all_its_references() -> None:
    native, nested = ran("native"), ran("ept")
    assert refs(native) == (4 * native.counters["walks"], 0)
    assert refs(nested) == (4 * nested.counters["walks"], 20 * nested.counters["walks"])
    assert refs(nested) == refs(simulate(SPREAD, Config(mmu="ept", premapped=True, walk_caches=False)))


@pytest.mark.parametrize(
    ("name", "texts", "counter"),
    [
        ("psc", ("none", "1/0/0", "1/4/0", "1/4/32", "2/4/512", "2/4/4096"), 0),
        ("psc", ("none", "8/fa", "64/fa", "1024/fa"), 0),
        ("epsc", ("none", "1/0/0", "1/4/0", "1/4/8", "1/4/64"), 1),
        ("gpm", ("off", "16/fa", "128/fa", "1024/fa"), 1),
    ],
)
def test_a_larger_one_saves_references(name: str, texts: tuple[str, ...], counter: int) -> None:
    found = [refs(ran("ept", **{name: text}))[counter] for text in texts]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)


def test_each_level_counts_what_it_found() -> None:
    """A reference to the guest's tables saved is a level that need not be read, of a walk that began below it."""
    result = ran("native", psc="1/4/64")
    hits = result.tlb["psc"]["hits"]
    assert hits["pde"] > 0
    assert hits["pdpte"] > 0
    assert hits["pml5e"] == 0
    walks = result.counters["walks"]
    assert result.counters["guest_walk_refs"] == 4 * walks - 3 * hits["pde"] - 2 * hits["pdpte"] - hits["pml4e"]
    only = ran("native", psc="0/4/0").tlb["psc"]["hits"]
    assert only["pdpte"] > 0
    assert only["pde"] == only["pml4e"] == 0


def test_a_level_alone_leaves_the_others_of_the_preset() -> None:
    base = Config(mmu="ept").geometry
    changed = Config(mmu="ept", epsc="pde 64/4").geometry
    assert changed.psc == base.psc
    assert {size: array.entries for array in changed.epsc for size in array.sizes} == {
        "pml4e": 2, "pdpte": 4, "pde": 64
    }  # fmt: skip
