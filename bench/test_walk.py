"""`fastmmu.walk`: one address, with every reference that the walk makes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import fastmmu
from bench.race import Race, Rival, Scale, timed
from bench.spaces import Space
from bench.yardstick import Yardstick
from fastmmu import reference


@pytest.mark.benchmark(group="walk")
@pytest.mark.parametrize("nested", [False, True], ids=["native", "nested"])
def test_walk(
    race: Race, space: Callable[[int, bool], Space], yardstick: Yardstick, scale: Scale, nested: bool
) -> None:
    """Beside the executable specification, which tells as much, and the yardstick, which tells the address alone."""
    at = space(512, nested)
    va = at.addresses(scale.of(20, 2_000, 10_000))
    asked = va.tolist()
    few = asked[: scale.of(5, 50, 200)]
    memory = reference.SparseMemory({8 * k: word for k, word in enumerate(at.memory.u64.tolist()) if word})
    state = reference.State(cr3=at.state.cr3)
    ept = None if at.eptp is None else reference.Ept(eptp=at.eptp.value)

    def specified() -> list[reference.Outcome]:
        return [reference.walk(memory, state, one, "r", ept=ept, write=False) for one in few]

    theirs = np.empty(len(va), np.uint64)
    rivals = [
        Rival("specification", timed(specified), len(few)),
        *yardstick.walk(at.memory.u64, at.state.cr3, at.eptp_value, va, theirs),
    ]
    walk, mem, guest, eptp = fastmmu.walk, at.memory, at.state, at.eptp
    found = race(lambda: [walk(mem, guest, one, eptp=eptp) for one in asked], len(asked), rivals)
    assert [one.pa for one in found] == at.physical(va).tolist()
    assert {(one.guest_refs, one.ept_refs) for one in found} == {(4, 20 if nested else 0)}
    assert [len(one.steps) for one in specified()] == [len(one.steps) for one in found[: len(few)]]
