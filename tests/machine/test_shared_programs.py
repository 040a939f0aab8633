"""Random programs of 2 to 8 vCPUs in every scheme, against the specification: addresses, counters, no stale use."""

from __future__ import annotations

import os

import pytest

from fastmmu import Config
from tests.support.shared_programs import on_specification, random_turns, run_turns
from tests.support.shared_spaces import SCHEMES

PROGRAMS = int(os.environ.get("FASTMMU_SHARED_PROGRAMS", "6"))
FIRST = int(os.environ.get("FASTMMU_SHARED_FIRST", "0"))
every_scheme = pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES.keys())


@every_scheme
def test_random_programs(config: Config) -> None:
    for seed in range(FIRST, FIRST + PROGRAMS):
        pages = ("4k", "thp", "2m")[seed % 3]
        chosen = config.replace(pages=pages, thp_threshold=4, lazy_tlb=config.lazy_tlb and seed % 5 != 4)
        vcpus, cpus, turns = random_turns(seed)
        came, counters, host = run_turns(chosen, vcpus, cpus, turns)
        expected, counted = on_specification(chosen, vcpus, turns)
        assert came == expected, seed
        assert counters == counted, seed
        assert host.counters(0)["stale_uses"] == 0, seed


def test_what_is_left_out_is_found() -> None:
    """Of these programs most use what is stale when the shootdown is left out; of those under PV when its flush is."""
    for name, omit, least in (("EPT, VPID", "shootdown", 8), ("native", "shootdown", 8), ("EPT, VPID, PV", "pv", 2)):
        found = 0
        for seed in range(12):
            vcpus, cpus, turns = random_turns(seed)
            found += run_turns(SCHEMES[name], vcpus, cpus, turns, (omit,))[2].counters(0)["stale_uses"] > 0
        assert found >= least, (name, found)


HYPERTHREADS = ("native", "native, PCIDs", "EPT, VPID", "EPT", "shadow 6.1, VPID", "EPT, VPID, PV", "NPT, INVLPGB")


@pytest.mark.parametrize("name", HYPERTHREADS)
@pytest.mark.parametrize("shared", ["l2,psc", "l1,l2,psc,gpm"])
def test_hyperthreads_of_one_core(name: str, shared: str) -> None:
    """All CPUs share small arrays: what the guest sees is the same, and they take room from each other."""
    taken = 0
    arrays = {"tlb": "haswell", "l1d": "8/4", "l1i": "8/4", "stlb": "16/4", "find_missing_flushes": False}
    for seed in range(3):
        vcpus, cpus, turns = random_turns(seed)
        threads = vcpus if SCHEMES[name].mmu == "native" else cpus
        config = SCHEMES[name].replace(topology=f"1x1x{threads}", shared=shared, **arrays)
        came, counters, host = run_turns(config, vcpus, cpus, turns)
        assert (came, counters) == on_specification(config, vcpus, turns), seed
        taken += sum(host.counters(vcpu)["sibling_evictions"] for vcpu in range(vcpus))
    assert taken > 0
