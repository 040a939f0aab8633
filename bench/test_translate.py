"""`fastmmu.translate`: many addresses in random order, native and over EPT, and short calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fastmmu
from bench.peers import TRANSLATORS
from bench.race import Race, Rival, Scale, timed
from bench.spaces import Space
from bench.yardstick import Yardstick

Spaces = Callable[[int, bool], Space]

NESTED = pytest.mark.parametrize("nested", [False, True], ids=["native", "nested"])


def lookups(space: Space, n: int, times: int = 1, threads: int = 1) -> tuple[Callable[[], fastmmu.Translation], int]:
    """A call that translates n addresses `times` over, and how many that are."""
    va = space.addresses(n)
    out = fastmmu.translate(space.memory, space.state, va, eptp=space.eptp)

    def call() -> fastmmu.Translation:
        for _ in range(times):
            fastmmu.translate(space.memory, space.state, va, eptp=space.eptp, out=out, threads=threads)
        return out

    return call, n * times


def right(space: Space, n: int, found: fastmmu.Translation) -> bool:
    return bool(not found.fault.any() and np.array_equal(found.pa, space.physical(space.addresses(n))))


@pytest.mark.benchmark(group="translate")
@pytest.mark.parametrize("pages", [512, 65_536, 2_000_000])
@NESTED
def test_translate(race: Race, space: Spaces, yardstick: Yardstick, scale: Scale, pages: int, nested: bool) -> None:
    at = space(min(pages, scale.of(20_000, pages, pages)), nested)
    n = scale.of(10_000, 300_000, 2_000_000)
    call, items = lookups(at, n)
    theirs = np.empty(n, np.uint64)
    va = at.addresses(n)
    rivals = yardstick.walk(at.memory.u64, at.state.cr3, at.eptp_value, va, theirs, group=True)
    found = race(call, items, rivals, target=1.0)
    assert right(at, n, found)
    assert not rivals or np.array_equal(found.pa, theirs)


@pytest.mark.benchmark(group="translate, short calls")
@pytest.mark.parametrize("addresses", [1, 16, 512])
def test_short_calls(race: Race, space: Spaces, yardstick: Yardstick, scale: Scale, addresses: int) -> None:
    at = space(512, False)
    times = scale.of(10, 2_000, 5_000)
    call, items = lookups(at, addresses, times)
    va, theirs = at.addresses(addresses), np.empty(addresses, np.uint64)
    rivals = yardstick.walk(at.memory.u64, at.state.cr3, None, va, theirs, times=times)
    found = race(call, items, rivals)
    assert right(at, addresses, found)
    assert not rivals or np.array_equal(found.pa, theirs)


@pytest.mark.benchmark(group="translate, two threads")
@NESTED
def test_two_threads(race: Race, space: Spaces, scale: Scale, nested: bool) -> None:
    """Beside one thread: at best half the time."""
    at = space(scale.of(20_000, 2_000_000, 2_000_000), nested)
    n = scale.of(10_000, 300_000, 2_000_000)
    call, items = lookups(at, n, threads=2)
    one, _ = lookups(at, n)
    assert right(at, n, race(call, items, [Rival("one thread", timed(one), items)], target=0.55))


@pytest.mark.benchmark(group="translate, beside other packages")
@pytest.mark.parametrize("peer", TRANSLATORS)
def test_beside(race: Race, space: Spaces, scale: Scale, tmp_path: Path, peer: str) -> None:
    """They take an address a call, as a program in Python calls them."""
    at = space(scale.of(512, 65_536, 65_536), False)
    try:
        theirs = TRANSLATORS[peer](at, tmp_path)
    except ImportError as error:
        pytest.skip(f"skipped: {peer} is not there ({error}); pip install --group bench")
    n = scale.of(1_000, 300_000, 2_000_000)
    call, items = lookups(at, n)
    few = at.addresses(n)[: scale.of(100, 5_000, 20_000)]
    asked = few.tolist()
    assert theirs(asked) == at.physical(few).tolist()
    assert right(at, n, race(call, items, [Rival(peer, timed(lambda: theirs(asked)), len(asked))], target=0.05))
