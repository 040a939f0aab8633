"""Accesses of a trace to two pages: a fault or VM exit on one of them begins the instruction anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmu import Config, Machine

PAGE = 0x1_0000
COLD = 0x80_0000


def run(m: Machine, *accesses: tuple[int, int, int]) -> dict[str, Any]:
    """What the counters of some accesses are: op, size, address."""
    before = m.counters()
    op, size, addr = (np.array(column) for column in zip(*accesses, strict=True))
    m.run(op.astype(np.uint8), size.astype(np.uint8), addr.astype(np.uint64))
    return {name: n - before[name] for name, n in m.counters().items() if isinstance(n, int)}


@pytest.mark.parametrize("vpid", [True, False])
@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_the_first_page_is_looked_up_again_after_an_exit_on_the_second(mmu: str, vpid: bool) -> None:
    """Without VPID the exit took its translation, which is walked again."""
    m = Machine(Config(mmu=mmu, vpid=vpid, memory="64M"))
    run(m, (0, 8, COLD), (0, 8, PAGE))  # the tables above both are there
    hit = run(m, (0, 8, PAGE))
    assert (hit["l1d_hits"], hit["tlb_misses"]) == (1, 0)
    found = run(m, (0, 8, PAGE + 0xFFC))
    assert found["page_crossings"] == 1
    assert found["vm_exits"] > 0
    lookups = found["l1d_hits"] + found["l1d_misses"]
    assert lookups == found["accesses"] + found["kernel_accesses"] + found["page_crossings"] + found["retries"]
    alone = Machine(Config(mmu=mmu, vpid=vpid, memory="64M"))
    run(alone, (0, 8, COLD), (0, 8, PAGE), (0, 8, PAGE))
    apart = run(alone, (0, 8, PAGE + 0xFF0), (0, 8, PAGE + 0x1000))  # both pages, by an access each
    assert found["vm_exits"] == apart["vm_exits"]
    assert found["retries"] == apart["retries"] + 1
    assert found["tlb_misses"] == apart["tlb_misses"] + (not vpid)
    again = run(m, (0, 8, PAGE + 0xFFC))
    assert (again["retries"], again["l1d_hits"]) == (0, 2 if vpid else again["l1d_hits"])


def test_without_a_vmm_a_page_fault_does_it_too() -> None:
    m = Machine(Config(mmu="native", memory="64M"))
    run(m, (0, 8, PAGE))
    found = run(m, (1, 8, PAGE + 0xFFC))
    assert (found["guest_faults"], found["retries"], found["page_crossings"]) == (1, 2, 1)
    assert run(m, (1, 8, PAGE + 0xFFC))["retries"] == 0


@pytest.mark.parametrize("kvm", ["slides", "6.1"])
def test_a_host_that_takes_the_first_page_for_the_second(kvm: str) -> None:
    """It is asked for again; with room for both the access ends."""
    config = Config(mmu="ept", vpid=True, memory="64M", host_memory="64k", kvm=kvm, host_pages="untouched")
    m = Machine(config)
    for i in range(200):
        page = 0x10_0000 + 0x1000 * (7 * i % 61)
        found = run(m, (1, 8, page + 0xFFC))
        assert found["page_crossings"] == 1
    assert m.counters()["swap_ins"] > 0
