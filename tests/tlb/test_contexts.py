"""Context numbers: given out, freed, recycled; and what happens when there are not enough."""

from __future__ import annotations

import random

import pytest

from fastmmu import ConfigError
from fastmmu.tlb.geometry import geometry
from fastmmu.tlb.tlb import TLB

ROOT = 0x1000


def test_a_context_lives_as_long_as_it_has_entries() -> None:
    tlb = TLB(geometry("skylake", l1d="2/2", stlb="2/2"))
    assert tlb.contexts == 0
    for vpid in range(1, 100):
        tlb.switch(vpid)
        assert tlb.lookup(0) == (0, 0)
        tlb.fill(0, TLB.value(vpid << 12))
        assert tlb.contexts == min(vpid, 2)
    tlb.switch(98)
    assert tlb.lookup(0) == (1, TLB.value(98 << 12))


def test_flushing_makes_room_for_new_numbers() -> None:
    """More flushes than numbers: dead ones are swept and given out again, and no old entry comes back."""
    tlb = TLB("skylake", max_contexts=8)
    for i in range(1, 1000):
        tlb.switch(1, 0, ROOT)
        page = i % 97 << 12
        assert tlb.lookup(page) == (0, 0)
        tlb.fill(page, TLB.value(i << 12))
        assert tlb.lookup(page) == (1, TLB.value(i << 12))
        assert tlb.invvpid(1, 1) == 2
    assert tlb.contexts == 0
    assert "contexts" not in tlb.counters()["flushes"]


def test_when_numbers_run_out_one_context_is_forgotten() -> None:
    tlb = TLB("skylake", max_contexts=8)
    for vpid in range(20):
        tlb.switch(vpid)
        tlb.fill(0, TLB.value(vpid << 12))
        assert tlb.contexts <= 8
    counted = tlb.counters()
    assert counted["flushes"]["contexts"] == 12
    assert sum(counted["invalidated"]["contexts"].values()) >= 12
    still = 0
    for vpid in range(20):
        tlb.switch(vpid)
        _, value = tlb.lookup(0)
        assert value in (0, TLB.value(vpid << 12))
        still += value != 0
    assert still == tlb.contexts == 8


@pytest.mark.parametrize("policy", ["lru", "plru"])
@pytest.mark.parametrize("numbers", [8, 20, 300])
def test_no_hit_is_ever_another_contexts(policy: str, numbers: int) -> None:
    """Many contexts over few numbers: a hit gives what this context cached last, after its last flush."""
    rng = random.Random(numbers)
    tlb = TLB(geometry("skylake", replacement=policy), max_contexts=numbers)
    cached: dict[tuple[int, int, int | None, int], int] = {}
    hits = 0
    for i in range(1, 12000):
        vpid, pcid, root = rng.randrange(6), rng.randrange(3), rng.choice([None, ROOT, 2 * ROOT])
        tlb.switch(vpid, pcid, root)
        la = rng.randrange(40) << 12
        level, value = tlb.lookup(la)
        if level:
            hits += 1
            assert cached[vpid, pcid, root, la] == value
        else:
            cached[vpid, pcid, root, la] = tlb.fill(la, TLB.value(i << 12))
        if rng.random() < 0.02:
            tlb.mov_cr3(vpid, pcid)
            cached = {key: v for key, v in cached.items() if key[:2] != (vpid, pcid)}
        if rng.random() < 0.01:
            tlb.invept(1, ROOT)
            cached = {key: v for key, v in cached.items() if key[2] != ROOT}
    assert hits > 300
    assert tlb.contexts <= numbers


def test_four_thousand_processes_keep_their_translations() -> None:
    """One VPID, every PCID, one page each: as many contexts as the second level has entries."""
    tlb = TLB("skylake")
    for pcid in range(4096):
        tlb.switch(1, pcid)
        tlb.fill(pcid << 12, TLB.value(pcid << 12))
    found = 0
    for pcid in range(4096):
        tlb.switch(1, pcid)
        found += tlb.lookup(pcid << 12)[0] > 0
    assert found == 1536
    tlb.invvpid(1, 1)
    assert tlb.live() == dict.fromkeys(tlb.live(), 0)
    assert tlb.contexts == 0


@pytest.mark.parametrize("numbers", [0, 7, 65535, -1])
def test_an_impossible_number_of_contexts_is_refused(numbers: int) -> None:
    with pytest.raises(ConfigError, match=f"{numbers}.*8..65534"):
        TLB("skylake", max_contexts=numbers)
