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
