"""Data caches under a machine: every reference goes through them, and nothing else of the run changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu import Config, ConfigError, Machine, StepKind, simulate
from fastmmu.cache import caches
from fastmmu.machine.cache_counts import cache_counts
from fastmmu.machine.cache_result import CacheResult, caches_between
from fastmmu.machine.replay import Replay
from fastmmu.study.consolidate import consolidate, run_threads
from fastmmu.tlb.geometry import geometry
from fastmmu.trace import bundled, read_trace
from tests.support.cache_models import Caches
from tests.support.event_lists import ALL_SCHEMES, program

SMALL = "skylake l1d=1k/2 l1i=1k/2 l2=4k/4 l3=16k/4 inclusion=neither banks=4 row=4k"
"""Caches that what a short trace touches does not fit into."""
SCHEMES = {
    "native": Config(),
    "shadow": Config(mmu="shadow", kvm="6.1"),
    "EPT": Config(mmu="ept"),
    "EPT, 2M": Config(mmu="ept", pages="2m", host_pages="2m"),
    "EPT over 2M": Config(mmu="ept", host_pages="2m"),
    "NPT": Config(mmu="ept", vendor="amd", kvm="6.1"),
}


def found_of(machine: Machine) -> CacheResult:
    found = caches_between(cache_counts(machine), None)
    assert found is not None
    return found


def events(n: int, seed: int = 3) -> tuple[np.ndarray[Any, Any], ...]:
    """Accesses of all kinds and sizes, some of two lines or pages, to pages near each other and far apart."""
    chance = np.random.default_rng(seed)
    near = chance.integers(0, 1 << 19, n, np.uint64) + np.uint64(0x40_0000)
    far = (chance.integers(0, 1 << 9, n, np.uint64) << np.uint64(30)) + chance.integers(0, 1 << 13, n, np.uint64)
    addr = np.where(chance.random(n) < 0.8, near, far)
    addr = np.where(chance.random(n) < 0.5, np.repeat(addr[::4], 4)[:n], addr)
    op = chance.choice(np.array([0, 0, 1, 2, 3], np.uint8), n)
    return op, chance.choice(np.array([1, 4, 8, 16, 64], np.uint8), n), addr


# ---- an independent count ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_counts_are_those_of_a_model_in_plain_python(scheme: str) -> None:
    """A machine without caches is taken through a trace event by event. Where it missed the TLB the entries of the walk
    are read from its memory by `fastmmu.walk`; these and the data go to a model in plain Python."""
    config = SCHEMES[scheme].replace(premapped=True, memory="16G", tlb=geometry("skylake", walk_caches=False))
    op, size, addr = events(3000)
    twin, tested = Machine(config), Machine(config.replace(caches=SMALL))
    description = caches(SMALL)
    assert description is not None
    model = Caches(description)
    out = np.zeros(1, np.uint64)
    eptp: Any = None
    if twin.vmcs.get("eptp"):
        eptp = fastmmu.Npt(twin.vmcs["eptp"] & ~0xFFF, maxphyaddr=46) if config.vendor == "amd" else twin.vmcs["eptp"]
    state = fastmmu.GuestState(cr3=twin.hw_cr3, cr4=0xA0, cpl=3, maxphyaddr=46)
    for i in range(len(op)):
        first = int(addr[i])
        parts = [(first, min(int(size[i]), 4096 - first % 4096))]
        if parts[0][1] < size[i]:
            parts.append(((first | 0xFFF) + 1, int(size[i]) - parts[0][1]))
        for la, nbytes in parts:  # two pages: as two accesses, which is what is counted
            before = twin.counters()["walks"]
            twin.run(op[i : i + 1], np.array([nbytes], np.uint8), np.array([la], np.uint64), out)
            access: Any = ["r", "w", "rw", "x"][op[i]]
            walk = fastmmu.walk(twin.memory, state, la, access=access, eptp=eptp)
            assert walk.pa is not None
            if twin.counters()["walks"] > before:
                steps = [step for step in walk.steps if step.kind in (StepKind.GUEST, StepKind.EPT)]
                model.walk(
                    (int(s.hpa), f"guest{s.level}" if s.kind == StepKind.GUEST else f"ept{s.guest_level}.{s.level}")
                    for s in steps
                )
            model.access(int(walk.pa), nbytes, ("read", "write", "write", "fetch")[op[i]])
    tested.run(op, size, addr)
    found = found_of(tested)
    assert twin.counters()["ad_writes"] == 0
    assert {cause: list(row) for cause, row in found.references.items()} == model.found
    assert found.walks == len(model.walks) == tested.counters()["walks"] > 300
    assert found.walk_cycles == sum(model.walks)
    for low, high, n in found.walk_latency:
        assert n == sum(low <= latency <= high for latency in model.walks)
    assert found.cycles_of() == sum(
        n * latency for row in model.found.values() for n, latency in zip(row, model.latency, strict=True)
    )
    assert all(sum(found.references[cause][level] for cause in found.references) for level in range(5))


# ---- what goes through them -------------------------------------------------------------------------------------


def agrees(counters: dict[str, Any], found: CacheResult) -> None:
    """Every reference that is counted was somewhere."""
    guest, ept = sum(found.at("guest")), sum(found.at("ept"))
    assert guest + ept == counters["guest_walk_refs"] + counters["ept_walk_refs"] + counters["ad_writes"]
    assert ept >= counters["ept_walk_refs"]
    assert guest >= counters["guest_walk_refs"]
    assert found.walks == counters["walks"]
    assert found.walk_cycles == found.cycles_of("guest", "ept")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("config", [*ALL_SCHEMES, *SCHEMES.values()], ids=str)
def test_a_program_is_the_same_with_caches(config: Config, seed: int) -> None:
    (batch,) = program(1500, seed).batches()
    plain, cached = Machine(config), Machine(config.replace(caches=SMALL))
    out, other = np.zeros((2, len(batch.op)), np.uint64)
    plain.run(batch.op, batch.size, batch.addr, out)
    cached.run(batch.op, batch.size, batch.addr, other)
    counters, found = cached.counters(), found_of(cached)
    assert counters == plain.counters()
    assert cached.tlb.counters() == plain.tlb.counters()
    assert (out == other).all()
    agrees(counters, found)
    assert sum(found.at("kernel")) >= counters["kernel_accesses"] - counters["vm_exits"]
    assert sum(found.at("vmm")) >= 32 * counters["vm_exits"]
    assert ("vmm" in found.references) == (config.mmu != "native")


@pytest.mark.parametrize("name", bundled())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_real_program_is_the_same_with_caches(scheme: str, name: str) -> None:
    trace = read_trace(bundled()[name]).head(400_000)
    plain = simulate(trace, SCHEMES[scheme])
    cached = simulate(trace, SCHEMES[scheme].replace(caches="skylake"))
    assert cached.counters == plain.counters
    assert cached.tlb == plain.tlb
    assert cached.caches is not None
    assert plain.caches is None
    agrees(cached.counters, cached.caches)
    data = sum(cached.caches.at("read", "write", "fetch"))
    assert cached.counters["accesses"] <= data < 1.2 * cached.counters["accesses"]
    assert cached.cycles == pytest.approx(sum(cached.cycles_by.values()))
    assert cached.cycles_by["guest_walk"] == cached.caches.cycles_of("guest")
    assert cached.cycles_by.get("ept_walk", 0) == cached.caches.cycles_of("ept")
    assert cached.cycles_by["data"] == cached.caches.cycles_of("read", "write", "fetch") - 4 * data
    same = ("accesses", "stlb", "guest_faults", "exit:ept_build", "exit:pf_fixed", "ad_writes")
    assert [cached.cycles_by.get(cause) for cause in same] == [plain.cycles_by.get(cause) for cause in same]


def test_guest_kernel() -> None:
    """Natively: a load or store is a line, a page that is cleared 64."""
    machine = Machine(Config(caches="skylake"))
    addr = np.arange(100, dtype=np.uint64) * np.uint64(4096) + np.uint64(0x40_0000)
    machine.run(np.zeros(100, np.uint8), np.ones(100, np.uint8), addr)
    counters = machine.counters()
    tables = 3  # of levels 3 to 1 that the first page needs, below its root
    assert counters["pages_touched"] == 100
    assert sum(found_of(machine).at("kernel")) == counters["kernel_accesses"] + 63 * (100 + tables)


def test_exits_touch_the_memory_of_the_vmm() -> None:
    machine = Machine(Config(mmu="ept", premapped=True, caches="skylake"))
    before = sum(found_of(machine).at("vmm"))
    machine.exit_instruction(10)
    assert sum(found_of(machine).at("vmm")) - before == 32


def test_the_vmm_of_agile_paging_touches_what_that_of_nested_paging_does() -> None:
    """Where all of the guest's tables are walked nested from the beginning."""
    trace = np.arange(0, 1 << 22, 64, dtype=np.uint64)
    configs = Config(mmu="ept", memory="64M"), Config(mmu="agile", agile="begin=nested back=never", memory="64M")
    nested, agile = (simulate(trace, config.replace(caches="skylake")) for config in configs)
    assert nested.caches is not None
    assert agile.caches is not None
    assert agile.counters["vm_exits"] == nested.counters["vm_exits"] > 1000
    assert agile.caches.at("vmm") == nested.caches.at("vmm")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_system_traces(scheme: str) -> None:
    trace: Any = read_trace(Path(__file__).parents[1] / "data/systems/mm.rec.xz")
    results = []
    for more in (None, "skylake"):
        replay = Replay(trace, SCHEMES[scheme].replace(caches=more, memory="1G", shadow_keys=scheme == "shadow"))
        for _ in replay.steps():
            pass
        assert replay.result().wrong == 0
        results.append((replay.counters(), replay.machine.tlb.counters()))
    assert results[0] == results[1]
    found = found_of(replay.machine)
    agrees(results[1][0], found)
    assert sum(found.at("read", "write", "fetch")) > 0.9 * results[1][0]["accesses"]
    if scheme == "shadow":
        assert sum(found.at("vmm")) > 40 * results[1][0]["vm_exits"]


# ---- parts of runs ----------------------------------------------------------------------------------------------


def test_behind_a_warm_up() -> None:
    trace = read_trace(bundled()["sqlite"]).head(200_000)
    config = Config(mmu="ept", caches="skylake")
    whole, late = simulate(trace, config), simulate(trace, config, warm_up=100_000)
    early = simulate(trace.head(100_000), config)
    assert whole.caches is not None
    assert late.caches is not None
    assert early.caches is not None
    now, before = whole.caches.counts(), early.caches.counts()
    assert late.caches == caches_between(now, before)
    agrees(late.counters, late.caches)
    assert late.cycles == pytest.approx(sum(late.cycles_by.values()))


def test_checkpoint(tmp_path: Path) -> None:
    """A machine goes on from a file as it would have gone on, what its caches hold among it."""
    op, size, addr = events(4000)
    machine = Machine(Config(mmu="ept", caches=SMALL, memory="16G"))
    machine.run(op[:2000], size[:2000], addr[:2000])
    machine.save(tmp_path / "machine.ckpt")
    again = Machine.from_checkpoint(tmp_path / "machine.ckpt")
    assert found_of(again) == found_of(machine)
    for each in (machine, again):
        each.run(op[2000:], size[2000:], addr[2000:])
    assert found_of(again) == found_of(machine)
    assert again.counters() == machine.counters()


def test_result_in_plain_types() -> None:
    found = simulate(read_trace(bundled()["sqlite"]).head(50_000), Config(mmu="ept", caches="zen2")).caches
    assert found is not None
    assert CacheResult.of_dict(found.to_dict()) == found == CacheResult.of_counts(found.counts())
    assert found.levels == ("l1", "l2", "l3", "row", "dram")
    assert found.latency == (4, 12, 39, 150, 200)


# ---- what there is not ------------------------------------------------------------------------------------------


def test_refused() -> None:
    config = Config(mmu="ept", caches="skylake")
    trace = read_trace(bundled()["sqlite"]).head(1000)
    for study in (consolidate, run_threads):
        with pytest.raises(ConfigError, match=r"caches='skylake'.*each vCPU"):
            study([trace], config)
    with pytest.raises(ConfigError, match="skylark"):
        Config(caches="skylark")
    with pytest.raises(ConfigError, match="caches=3"):
        Config(caches=3)
