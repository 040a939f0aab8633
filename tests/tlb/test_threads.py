"""Two threads on one TLB, one page-modification log, one iterator of mappings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastmmu import TLB, Config, Eptp, GuestState, PhysicalMemory, Pml, iter_mappings, walk
from tests.support.hammer import race
from tests.support.thread_calls import running


@pytest.mark.parametrize("how", ["one", "both"])
def test_a_tlb_of_its_own(how: str) -> None:
    """Two threads that simulate on one TLB: one of them is refused; what reads is not."""

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        tlb, pages = TLB("strict"), np.random.default_rng(1).integers(0, 9000, 50_000).astype(np.uint64) << 12
        tlb.simulate(pages)

        def read() -> object:
            return tlb.counters(), tlb.entries(), tlb.live()

        return lambda: tlb.simulate(pages), read if how == "one" else lambda: tlb.simulate(pages)

    found = race(make, 20)
    assert found.long > 0
    if how == "one":
        assert (found.short, found.refused) == (20, 0), found.said
    else:
        assert not found.said or "TLB.simulate() is under way in another thread" in found.said


def test_walks_that_share_a_tlb_and_a_log() -> None:
    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        tlb, memory, log = TLB(), PhysicalMemory(1 << 20), Pml(0x8000)
        for at, entry in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4028, 0x5037)):
            memory.write64(at, entry)
        eptp, state = Eptp(0x105E, pml=log), GuestState(cr0=0x11, cr4=0, efer=0)

        def access() -> None:
            memory.write64(0x4028, 0x5037)
            walk(memory, state, 0x5000, access="w", eptp=eptp, set_ad=True, tlb=tlb)
            tlb.reset()
            if log.index > 511:
                log.index = 511

        return access, access

    found = race(make, 300)
    assert (found.short, found.refused, found.long_refused) == (300, 0, 0), found.said


def test_an_iterator_of_mappings() -> None:
    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        machine, run = running(Config(memory="64M"))
        run()
        its = [iter_mappings(machine.memory, machine.state, chunk=7)]

        def step() -> None:
            if next(its[0], None) is None:
                its[0] = iter_mappings(machine.memory, machine.state, chunk=7)
            assert its[0].skipped is not None

        return step, step

    assert race(make, 300).refused == 0
