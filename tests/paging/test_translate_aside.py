"""Translation with rights left aside: the specification's word on each address, and what an enumeration lists."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmmu
from fastmmu import Fault
from fastmmu import reference as ref
from fastmmu.image import read_guest
from tests.support.address_spaces import space_of
from tests.support.random_scenes import MEMORY, Scene, random_scene
from tests.support.random_tables import MODES, RandomTables
from tests.support.recordings import all_of, sample_of

GUESTS = [*sample_of("guests").glob("*/meta.json"), *all_of("guests", "FASTMMU_GUESTS").glob("*/meta.json")]
OVER = {"": False, "-ept": True, "-npt": "npt"}
CASES = [pytest.param(mode, OVER[ept], id=f"{mode.name}{ept}") for mode in ref.Mode for ept in OVER]


def addresses(scene: Scene, rng: random.Random) -> list[int]:
    """Of its accesses, their pages' neighbours, and a few from anywhere."""
    near = [la + rng.choice([0, 0, 1 << 12, 1 << 21]) + rng.randrange(4096) for la, _ in scene.attempts for _ in "...."]
    return [la % (1 << 64) for la in [*near, rng.getrandbits(64), rng.getrandbits(47), rng.getrandbits(32)]]


@pytest.mark.parametrize(("mode", "ept"), CASES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_equals_the_specification(mode: ref.Mode, ept: bool | str, seed: int) -> None:
    rng = random.Random(seed)
    scene = random_scene(rng, modes=(mode,), with_ept=(ept,))
    memory, state, eptp = space_of(scene)
    asked = addresses(scene, rng)
    found = fastmmu.translate(memory, state, np.array(asked, np.uint64), access=None, eptp=eptp)
    plain = ref.SparseMemory(scene.mem, MEMORY)
    wanted = [ref.place_of(plain, scene.state, la, scene.ept) for la in asked]
    assert list(zip(found.fault.tolist(), found.pa.tolist(), strict=True)) == [
        (fault, (1 << 64) - 1 if pa is None else pa) for fault, pa in wanted
    ], scene.defects


@pytest.mark.parametrize("ept", [False, True, "npt"], ids=["native", "nested", "npt"])
@pytest.mark.parametrize("mode", MODES)
def test_is_what_the_enumeration_lists(mode: str, ept: bool | str) -> None:
    """Every address of a row translates to its place; one that does not translate is in no row."""
    seen: Counter[Fault] = Counter()
    denied = 0
    for seed in range(12):
        tables = RandomTables(seed, mode, ept)
        va = tables.addresses(300)
        found = fastmmu.translate(tables.mem, tables.state, va, access=None, eptp=tables.eptp)
        if mode in ("32", "pae", "none"):
            va &= np.uint64(0xFFFF_FFFF)
        for la, pa, fault in zip(va.tolist(), found.pa.tolist(), found.fault.tolist(), strict=True):
            stop = min(la + 1, (1 << 64) - 1)
            rows = fastmmu.mappings(tables.mem, tables.state, tables.eptp, start=min(la, stop - 1), stop=stop)
            seen[Fault(fault)] += 1
            assert [row.pa + (la - row.va) for row in rows] == ([pa] if fault == Fault.NONE else [])
            denied += bool(len(rows)) and not rows[0].readable
    assert seen[Fault.NONE] > 100
    assert len(seen) > 1 or (mode == "none" and not ept)
    assert denied > 0 or not ept  # pages that nobody may read are among them


@pytest.mark.parametrize("place", [meta.parent for meta in GUESTS], ids=lambda place: place.name)
def test_guests(place: Path) -> None:
    """No page of a recorded guest faults, whatever its own registers say of rights; with them SMAP denies some."""
    guest = read_guest(place)
    va = np.ascontiguousarray(guest.expected["va"], np.uint64)
    found = fastmmu.translate(guest.memory, guest.state, va, access=None)
    assert not found.fault.any()
    assert np.array_equal(found.pa, guest.expected["pa"])
    nowhere = np.ascontiguousarray(guest.expected["unmapped_va"], np.uint64)
    assert fastmmu.translate(guest.memory, guest.state, nowhere, access=None).fault.all()
    if place.name == "l4_user":
        kernel = guest.state.replace(cpl=0, ac=0)
        denied = np.count_nonzero(fastmmu.translate(guest.memory, kernel, va).fault)
        assert denied == np.count_nonzero(fastmmu.mappings(guest.memory, guest.state).user)
        assert denied == (4987 if len(va) == 78686 else 559)
