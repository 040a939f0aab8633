"""`fastmmu.mappings` of whole address spaces, and `fastmmu.translate` of what was asked of recorded guests.

Nothing enumerates in the yardstick. Beside it stands what comes closest, its walks of the first address of each page
in order: it is told the addresses, which an enumeration has to find, and writes 8 bytes where a row has 56.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fastmmu
from bench.race import Race, Rival, Scale, timed
from bench.spaces import Space
from bench.yardstick import Yardstick
from fastmmu.image import Guest, read_guest

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "guests"
GUESTS = Path(os.environ.get("FASTMMU_GUESTS") or SAMPLE)


@pytest.mark.benchmark(group="mappings")
@pytest.mark.parametrize("pages", [65_536, 2_000_000])
@pytest.mark.parametrize("nested", [False, True], ids=["native", "nested"])
def test_mappings(
    race: Race,
    space: Callable[[int, bool], Space],
    yardstick: Yardstick,
    scale: Scale,
    pages: int,
    nested: bool,
) -> None:
    """Nested: the rows come from two sets of tables."""
    at = space(min(pages, scale.of(20_000, pages, pages)), nested)
    va = at.in_order
    theirs = np.empty(len(va), np.uint64)
    rivals = yardstick.walk(at.memory.u64, at.state.cr3, at.eptp_value, va, theirs, group=True)
    rows = race(lambda: fastmmu.mappings(at.memory, at.state, at.eptp), at.pages, rivals)
    assert np.array_equal(rows.va, va)
    assert np.array_equal(rows.pa, at.physical(va))
    assert not rivals or np.array_equal(rows.pa, theirs)


@pytest.mark.benchmark(group="mappings, two threads")
@pytest.mark.parametrize("nested", [False, True], ids=["native", "nested"])
def test_mappings_in_two_threads(race: Race, space: Callable[[int, bool], Space], scale: Scale, nested: bool) -> None:
    """At best half the time of one thread, on an idle machine."""
    at = space(scale.of(100_000, 2_000_000, 2_000_000), nested)
    one: list[fastmmu.MappingArray] = []

    def alone() -> None:
        one[:] = [fastmmu.mappings(at.memory, at.state, at.eptp)]

    rivals = [Rival("one thread", timed(alone), at.pages)]
    rows = race(lambda: fastmmu.mappings(at.memory, at.state, at.eptp, threads=2), at.pages, rivals, target=0.55)
    assert np.array_equal(rows, one[0])


@pytest.fixture(scope="session", params=sorted(meta.parent.name for meta in GUESTS.glob("*/meta.json")))
def guest(request: pytest.FixtureRequest) -> Guest:
    return read_guest(GUESTS / request.param)


def walked(guest: Guest) -> bool:
    """Does the yardstick walk such tables?"""
    return guest.state.mode.name == "LEVEL_4"


@pytest.mark.benchmark(group="mappings of recorded guests")
def test_mappings_of_guests(race: Race, yardstick: Yardstick, guest: Guest) -> None:
    rows = fastmmu.mappings(guest.memory, guest.state)
    va = np.ascontiguousarray(rows.va)
    theirs = np.empty(len(va), np.uint64)
    rivals = yardstick.walk(guest.memory.u64, guest.state.cr3, None, va, theirs) if walked(guest) else []
    found = race(lambda: fastmmu.mappings(guest.memory, guest.state), len(rows), rivals)
    assert len(found) == len(rows) > 0
    assert not rivals or np.array_equal(found.pa, theirs)


@pytest.mark.benchmark(group="translate in recorded guests")
def test_translate_in_guests(race: Race, yardstick: Yardstick, scale: Scale, guest: Guest) -> None:
    va = np.ascontiguousarray(guest.expected["gva"], np.uint64)
    state = guest.state.replace(cpl=0, ac=1)
    times = scale.of(1, 20, 100)
    out = fastmmu.translate(guest.memory, state, va)
    theirs = np.empty(len(va), np.uint64)
    asked = (guest.memory.u64, guest.state.cr3, None, va, theirs)
    rivals = yardstick.walk(*asked, times=times, group=True) if walked(guest) else []

    def call() -> None:
        for _ in range(times):
            fastmmu.translate(guest.memory, state, va, out=out)

    race(call, len(va) * times, rivals)
    assert np.array_equal(out.pa, guest.expected["gpa"])
    assert not rivals or np.array_equal(out.pa, theirs)
