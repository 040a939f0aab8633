"""Packages, cores and hyperthreads: what is written how, which CPU is where, and what a host's CPUs share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmu import Config, ConfigError, Host, Op
from fastmmu.machine.topology import Topology, topology
from fastmmu.study import consolidate
from fastmmu.study.consolidate.table import host_table
from tests.support.event_lists import events

EPT = Config(mmu="ept", vpid=True, memory="64M", l1d="4/4", l1i="4/4", stlb="64/4")


def test_places() -> None:
    found = topology(" 2X3x2")
    assert (found, str(found), found.cpus) == (Topology(2, 3, 2), "2x3x2", 12)
    assert [found.place(cpu) for cpu in (0, 1, 2, 5, 6, 11)] == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 2, 1), (1, 0, 0), (1, 2, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "bad", ["", "2", "2x2", "1x1x9", "0x1x1", "1x1x2x1", "1x1x2.0", "5000x1x1", "64x65x1", "-1x1x1"]
)
def test_what_is_none_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="topology"):
        Config(topology=bad)


@pytest.mark.parametrize("bad", [2, (1, 1, 2), b"1x1x2", Topology(1, 1, 2)])
def test_a_field_is_text(bad: Any) -> None:
    with pytest.raises(ConfigError, match="topology"):
        Config(topology=bad)


def test_a_configuration_says_what_is_shared() -> None:
    assert Config().geometry.shared == ("l2", "psc")
    assert Config(shared="none").geometry.shared == ()
    assert Config(shared="psc,l1").geometry.shared == ("l1", "psc")
    assert Config(topology=" 1 x 2X2").topology == "1x2x2"
    with pytest.raises(ConfigError, match="shared='l4'"):
        Config(shared="l4")


def test_the_cpus_of_a_host() -> None:
    host = Host([EPT.replace(topology="1x2x2")])
    assert [tlb.siblings for tlb in host.cpus] == [2, 2, 2, 2]
    assert [tlb.siblings for tlb in Host([EPT], cpus=3).cpus] == [1, 1, 1]
    assert len(Host([EPT.replace(topology="1x2x2")], cpus=4).cpus) == 4
    with pytest.raises(ConfigError, match="topology=1x2x2 has 4 CPUs, and there are 3"):
        Host([EPT.replace(topology="1x2x2")], cpus=3)


def loads(pages: int, rounds: int) -> tuple[Any, Any, Any]:
    va = np.tile(np.arange(pages, dtype=np.uint64) * 4096 + 0x40_0000, rounds)
    return np.full(len(va), Op.READ, np.uint8), np.full(len(va), 8, np.uint8), va


def test_machines_on_the_hyperthreads_of_a_core_contend() -> None:
    """On one core each takes room from the other; on two cores, or one after the other, none does."""
    misses = {}
    for shape in ("1x1x2", "1x2x1"):
        host = Host([EPT.replace(topology=shape)] * 2)
        for _ in range(6):
            for vcpu in (0, 1):
                host.run(vcpu, vcpu, *loads(40, 1))
        counters = [host.counters(vcpu) for vcpu in (0, 1)]
        misses[shape] = [c["tlb_misses"] for c in counters]
        for c in counters:
            assert (c["sibling_misses"] > 0) == (c["sibling_evictions"] > 0) == (shape == "1x1x2")
            assert c["sibling_misses"] <= c["tlb_misses"]
    assert all(a > b for a, b in zip(misses["1x1x2"], misses["1x2x1"], strict=True))


def test_consolidation_by_topology() -> None:
    traces = [events(*[(Op.READ, range(0x40_0000, 0x40_0000 + 60 * 4096, 4096))] * 8) for _ in range(2)]
    found = consolidate(traces, EPT.replace(topology="1x1x2"), quantum=60)
    assert len(found.tlbs) == 2
    assert "hyperthreads of a core: " in host_table(found)
    assert "hyperthreads" not in host_table(consolidate(traces, EPT, cpus=2, quantum=60))
    assert sum(result.counters["sibling_misses"] for result in found.results) > 0
