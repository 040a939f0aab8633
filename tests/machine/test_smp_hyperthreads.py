"""System traces of several CPUs on the hyperthreads of a core: they share room, and no result depends on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmmu import Config
from fastmmu.errors import ConfigError
from fastmmu.machine.replay import Replay
from fastmmu.trace import read_trace
from fastmmu.trace.system import SystemTrace
from tests.conformance import systems
from tests.support.smp_traces import random_trace

SAMPLES = systems.traces(systems.smp_sample_directory())
NATIVE = Config(memory="64M")
EPT = Config(mmu="ept", vpid=True, memory="64M")
SHADOW = Config(mmu="shadow", vpid=True, shadow_keys=True, kvm="6.1", memory="64M")
EACH = pytest.mark.parametrize("config", [NATIVE, EPT, SHADOW], ids=lambda config: config.name)


def opened(path: Path) -> SystemTrace:
    trace = read_trace(path)
    assert isinstance(trace, SystemTrace)
    return trace


SHARING = {"tlb": "haswell", "l1d": "8/4", "l1i": "8/4", "stlb": "16/4", "topology": "1x1x2"}


@EACH
@pytest.mark.parametrize("shared", ["l2", "l2,psc", "l1,l2,psc,gpm"])
def test_hyperthreads_that_share(tmp_path: Path, config: Config, shared: str) -> None:
    """What is shared is room alone: each CPU goes by what it may hold itself, and loses entries to the other."""
    taken = missed = 0
    for seed in range(4):
        path = random_trace(300 + seed, cpus=2).write(tmp_path)
        replay = Replay(opened(path), config.replace(shared=shared, **SHARING))
        for _ in replay.steps():
            pass
        found = replay.result()
        assert (found.neither, found.mismatches) == (0, 0), found.examples
        assert found.different == found.flags_alone
        assert all(tlb.siblings == 2 for tlb in replay.cpus.tlbs)
        counters = replay.counters()
        taken, missed = taken + counters["sibling_evictions"], missed + counters["sibling_misses"]
    assert taken > 0
    assert missed > 0 or config.mmu == "shadow"  # whose flushes end what was lost, as a rule


def test_cores_of_hyperthreads(tmp_path: Path) -> None:
    """Four CPUs as two cores of two: what is displaced is of the own core's."""
    path = random_trace(78, cpus=4, steps=400).write(tmp_path)
    for config in (NATIVE, EPT):
        replay = Replay(opened(path), config.replace(**{**SHARING, "topology": "1x2x2"}))
        for _ in replay.steps():
            pass
        assert replay.result().neither == 0
        assert replay.counters()["sibling_evictions"] > 0
    with pytest.raises(ConfigError, match="topology=1x1x2 has 2 CPUs, and there are 4"):
        Replay(opened(path), NATIVE.replace(topology="1x1x2"))


@EACH
def test_sample_on_hyperthreads(config: Config) -> None:
    (path,) = SAMPLES
    replay = Replay(opened(path), config.replace(memory="1G", **SHARING))
    for _ in replay.steps():
        pass
    found = replay.result()
    assert (found.wrong, found.neither) == (0, 0), found.examples
