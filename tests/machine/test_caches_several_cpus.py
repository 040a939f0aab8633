"""Data caches of several physical CPUs: of a host, of system traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, ConfigError, Host, Machine, simulate
from fastmmu.machine.cache_counts import cache_counts
from fastmmu.machine.cache_result import CacheResult, caches_between
from fastmmu.machine.replay import Replay
from fastmmu.trace import bundled, read_trace
from tests.support.smp_traces import random_trace

SCHEMES = {
    "ept": Config(mmu="ept", vpid=True, caches="skylake", memory="64M"),
    "shadow": Config(mmu="shadow", vpid=True, caches="skylake", memory="64M"),
    "npt": Config(mmu="ept", vendor="amd", kvm="6.1", caches="zen2", memory="64M"),
}


def columns(n: int, start: int = 0) -> tuple[np.ndarray[Any, Any], ...]:
    batches = list(read_trace(bundled()["sqlite"]).head(start + n).batches())
    return tuple(np.concatenate([getattr(batch, name) for batch in batches])[start:] for name in ("op", "size", "addr"))


def found_of(machine: Machine) -> CacheResult:
    found = caches_between(cache_counts(machine), None)
    assert found is not None
    return found


@pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)
def test_a_host_of_one_vcpu_is_a_machine(config: Config) -> None:
    events = columns(30_000)
    alone, host = Machine(config), Host([config])
    alone.run(*events)
    host.run(0, 0, *events)
    assert found_of(host.machines[0]) == found_of(alone)


@pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)
def test_turns_are_what_counts_not_calls(config: Config) -> None:
    """A turn of a vCPU in one call or in many; counters are those without caches."""
    results = []
    for part, more in ((5_000, config), (177, config), (5_000, config.replace(caches=None))):
        host = Host([(more, 2), more], cpus=2)
        for turn in range(6):
            vcpu = turn % 3
            op, size, addr = columns(5_000, 5_000 * (turn // 3))
            for first in range(0, len(op), part):
                each = slice(first, first + part)
                host.run(vcpu, turn % 2, op[each], size[each], addr[each])
        counters = [host.counters(vcpu) for vcpu in range(3)]
        results.append((counters, [caches.counters() for caches in host.caches], [c.lines() for c in host.caches]))
    assert results[0] == results[1]
    assert results[0][0] == results[2][0]
    assert results[2][1] == []
    each = results[0][1]
    assert all(sum(sum(found["references"][cause]) for cause in ("read", "write", "fetch")) > 10_000 for found in each)
    assert sum(found["invalidated"] for found in each) > 0


def test_vcpus_that_write_the_same_memory_take_lines_from_each_other() -> None:
    config = SCHEMES["ept"]
    host = Host([(config, 2)], cpus=2)
    n = 200
    addr = np.full(n, 0x40_0000, np.uint64)
    for vcpu in (0, 1):  # processes of their own: what they write is not shared
        host.run(vcpu, vcpu, np.ones(n, np.uint8), np.full(n, 8, np.uint8), addr)
    before = [caches.counters()["invalidated"] for caches in host.caches]
    for _ in range(4):
        for vcpu in (0, 1):
            host.run(vcpu, vcpu, np.ones(1, np.uint8), np.full(1, 8, np.uint8), addr[:1])
    assert [caches.counters()["invalidated"] for caches in host.caches] == before
    for turn in range(4):  # one vCPU, moved from CPU to CPU
        host.run(0, turn % 2, np.ones(1, np.uint8), np.full(1, 8, np.uint8), addr[:1])
    after = [caches.counters()["invalidated"] for caches in host.caches]
    assert all(now >= then + 1 for now, then in zip(after, before, strict=True))


@pytest.mark.parametrize("scheme", ["native", "ept", "shadow"])
def test_system_traces_of_several_cpus(scheme: str, tmp_path: Path) -> None:
    config = {
        "native": Config(memory="64M"),
        "ept": Config(mmu="ept", vpid=True, memory="64M"),
        "shadow": Config(mmu="shadow", vpid=True, shadow_keys=True, kvm="6.1", memory="64M"),
    }[scheme]
    shared = 0
    for seed in range(6):
        trace: Any = read_trace(random_trace(seed).write(tmp_path))
        results = []
        for caches in (None, "skylake"):
            replay = Replay(trace, config.replace(caches=caches))
            for _ in replay.steps():
                pass
            results.append((replay.counters(), replay.result().wrong))
        assert results[0] == results[1]
        found = found_of(replay.machine)
        assert sum(found.at("read", "write", "fetch")) > 0.5 * results[1][0]["accesses"]
        assert sum(found.at("guest")) <= results[1][0]["guest_walk_refs"] + results[1][0]["ad_writes"]
        whole = simulate(trace, config.replace(caches="skylake"))
        assert whole.caches == found
        assert whole.cycles_by["data"] == found.beyond_l1("read", "write", "fetch")
        shared += found.invalidated + found.supplied
    assert shared > 0


def test_machines_of_a_host_have_the_same_caches() -> None:
    config = SCHEMES["ept"]
    with pytest.raises(ConfigError, match=r"caches=None.*share its caches"):
        Host([config, config.replace(caches=None)])
    host = Host([config])
    with pytest.raises(ConfigError, match="share its caches"):
        host.add(config.replace(caches="zen2"))
    assert len(host.machines) == 1
    with pytest.raises(ConfigError, match="at most 64"):
        Host([config], cpus=65)


def test_caches_live_as_long_as_machines_do() -> None:
    host = Host([(SCHEMES["ept"], 2)], cpus=2)
    host.run(1, 1, *columns(1_000))
    machine = host.machines[0]
    del host
    assert sum(found_of(machine).at("read", "write", "fetch")) >= 1_000
