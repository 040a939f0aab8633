"""Extensions of the TLB under whole machines: whatever they hold, a guest sees what it sees without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import CheckpointError, Config, ConfigError, Host, Machine, Op, Trace, simulate
from fastmmu.machine.replay import Replay
from fastmmu.trace import read_trace
from tests.support.recordings import all_of, sample_of

EXTENSIONS = (
    "clustered:8", "coalesced:8", "range:32", "pom:64k", "prefetch:sequential", "prefetch:distance", "prefetch:recency",
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


WALKS = ("tlb_misses", "walks", "guest_walk_refs", "ept_walk_refs")


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


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TLB extension 'victim' is unknown"):
        Config(tlb_extension="victim")
    machine = Machine(Config(memory="128M", tlb_extension="range:32"))
    with pytest.raises(CheckpointError, match="tlb_extension"):
        machine.save(tmp_path / "range.checkpoint")
    with pytest.raises(ConfigError, match="hyperthreads"):
        Host([Config(memory="128M", mmu="ept", topology="1x1x2", tlb_extension="range:32")])
