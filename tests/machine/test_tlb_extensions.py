"""Extensions of the TLB under whole machines: whatever they hold, a guest sees what it sees without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, ConfigError, CostModel, Host, Op, Trace, simulate
from fastmmu.machine.replay import Replay
from fastmmu.trace import read_trace
from tests.support.recordings import all_of, sample_of

EXTENSIONS = (
    "clustered:8", "coalesced:8", "range:32", "pom:64k", "prefetch:sequential", "prefetch:distance", "prefetch:recency",
    "prefetch:stride", "prefetch:markov", "skewed:1536/12", "rehash:64/4", "mix:1536/12",
    "clustered:8:64/4+range:4+pom:16k+prefetch:recency:4",
)  # fmt: skip
STRICT = {"tlb": "strict", "find_missing_flushes": True}
MODES = {
    "native": Config(),
    "native, strict": Config(**STRICT),
    "shadow": Config(mmu="shadow", shadow_keys=True),
    "shadow+VPID, strict": Config(mmu="shadow", vpid=True, shadow_keys=True, **STRICT),
    "EPT": Config(mmu="ept"),
    "EPT+VPID": Config(mmu="ept", vpid=True),
    "EPT+VPID, strict": Config(mmu="ept", vpid=True, **STRICT),
    "EPT+VPID, no A/D flags": Config(mmu="ept", vpid=True, ept_ad=False),
    "NPT": Config(mmu="ept", vpid=True, vendor="amd"),
}


def replayed(path: Path, config: Config) -> None:
    replay = Replay(read_trace(path), config)
    for _ in replay.steps():
        pass
    found = replay.result()
    assert found.accesses > 100_000
    assert sum(found.by_kind[kind] for kind in ("address", "faulted", "fault", "no fault")) == 0, found.examples
    assert not found.different
    assert found.stale_uses == 0, found.stale
    assert (found.uses_compared > 0) == config.find_missing_flushes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_whole_linux_finds_every_address(extension: str, mode: str) -> None:
    (path,) = sample_of("systems").glob("mm.rec.xz")
    replayed(path, MODES[mode].replace(tlb_extension=extension))


FULL = sorted(all_of("traces", "FASTMMU_TRACES").glob("*.rec*"))


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="skipped: no system traces; set FASTMMU_TRACES")
@pytest.mark.parametrize("mode", ["native, strict", "shadow+VPID, strict", "EPT+VPID, strict"])
@pytest.mark.parametrize("path", FULL, ids=lambda path: path.name)
def test_all_of_it(path: Path, mode: str) -> None:
    replayed(path, MODES[mode].replace(tlb_extension=EXTENSIONS[-1]))


def events(seed: int, n: int = 6000) -> Trace:
    rng = np.random.default_rng(seed)
    page = np.where(rng.random(n) < 0.4, np.arange(n) // 8 % 400, rng.integers(0, 400, n))
    op = rng.choice([Op.READ, Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH], n).astype(np.uint8)
    other = rng.random(n) < 0.01
    op[other] = rng.choice([Op.SWITCH, Op.INVLPG, Op.UNMAP, Op.EXIT], int(other.sum()))
    addr = 0x100_0000_0000 + page * 4096
    addr[op == Op.SWITCH] = page[op == Op.SWITCH] % 3
    addr[op == Op.EXIT] = 10
    return Trace.from_arrays(addr.astype(np.uint64), op)


WALKS = (
    "tlb_misses", "walks", "guest_walk_refs", "ept_walk_refs", "extension_reads", "extension_refs", "background_refs",
)  # fmt: skip


@pytest.mark.parametrize("extension", EXTENSIONS)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1))
def test_nothing_but_walks_is_saved(extension: str, seed: int) -> None:
    """Every other counter of a run is the same: exits, faults, stores of flags, what the guest kernel did."""
    trace = events(seed)
    for mode in ("native", "shadow", "EPT", "EPT+VPID", "EPT+VPID, strict"):
        config = MODES[mode].replace(memory="128M", pcid=True, **({} if "strict" in mode else {"stlb": "64/4"}))
        alone, with_it = simulate(trace, config), simulate(trace, config.replace(tlb_extension=extension))
        left, right = ({k: v for k, v in run.counters.items() if k not in WALKS} for run in (alone, with_it))
        assert left == right, mode
        assert with_it.counters["walks"] <= alone.counters["walks"]
        assert "extensions" in with_it.tlb
        assert "extensions" not in alone.tlb


SMALL = "skylake l1d=1k/2 l1i=1k/2 l2=4k/4 l3=16k/4 inclusion=neither"


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("mode", ["native", "shadow", "EPT+VPID", "NPT"])
def test_data_caches_see_what_extensions_refer_to(extension: str, mode: str) -> None:
    """Every reference that is counted, by whether an access waits for it; nothing else of the run changes."""
    trace = events(7, 20_000)
    config = MODES[mode].replace(memory="128M", pcid=True, stlb="64/4", tlb_extension=extension)
    plain, cached = simulate(trace, config), simulate(trace, config.replace(caches=SMALL))
    assert plain.counters == cached.counters
    assert plain.tlb == cached.tlb
    found = cached.caches
    assert found is not None
    assert sum(found.at("extension")) == plain.counters["extension_refs"]
    assert sum(found.at("background")) == plain.counters["background_refs"]
    counted = [one for one in plain.tlb["extensions"].values() if isinstance(one, dict)]
    assert sum(one["waited_refs"] for one in counted) == plain.counters["extension_refs"]
    prefetched = sum(one["prefetch_guest_refs"] + one["prefetch_ept_refs"] for one in counted)
    memory = sum(one["memory_refs"] for one in counted)
    assert memory + prefetched == plain.counters["extension_refs"] + plain.counters["background_refs"]
    assert sum(one["reads"] for one in counted) == plain.counters["extension_reads"]
    assert memory + prefetched > 0 or extension.partition(":")[0] not in ("range", "pom", "prefetch")


def test_what_extensions_cost() -> None:
    trace, costs = events(8), CostModel.load()
    for caches in (None, SMALL):
        result = simulate(trace, Config(stlb="64/4", tlb_extension="clustered:8+pom:16m", caches=caches))
        reads, refs = result.counters["extension_reads"], result.counters["extension_refs"]
        memory = refs * costs.price("extension.reference")
        if result.caches is not None:
            memory = result.caches.cycles_of("extension")
        assert min(reads, refs, memory) > 0
        assert result.cycles_by["extensions"] == pytest.approx(reads * costs.extension.read + memory)
    assert "extensions" not in simulate(trace, Config(stlb="64/4")).cycles_by


@pytest.mark.parametrize("extension", ["skewed:1536/12", "rehash:1536/12", "mix:1536/12"])
@pytest.mark.parametrize("mode", MODES)
def test_a_whole_linux_without_a_second_level(extension: str, mode: str) -> None:
    for path in sample_of("systems").glob("*.rec.xz"):
        config = MODES[mode]
        if config.tlb != "strict":
            config = config.replace(stlb="none")
        replayed(path, config.replace(tlb_extension=extension))


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="TLB extension 'victim' is unknown"):
        Config(tlb_extension="victim")
    with pytest.raises(ConfigError, match="hyperthreads"):
        Host([Config(memory="128M", mmu="ept", topology="1x1x2", tlb_extension="range:32")])
