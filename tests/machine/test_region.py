"""What a run counts after a warm-up, and in intervals: differences of its counters, however the trace is dealt out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmu import Config, ConfigError, Op, TraceError, read_trace, simulate
from fastmmu.dtypes import EXIT_DTYPE
from fastmmu.machine.result import Result
from fastmmu.machine.series import AT_END
from fastmmu.machine.side_by_side import each
from fastmmu.ops import LAST_ACCESS
from fastmmu.report import over_time, rows
from fastmmu.trace import Trace, bundled
from tests.support.event_lists import ALL_SCHEMES
from tests.support.mixed_trace import ACCESSES, MIXED, SHELL, Chunked


def upto(trace: Trace, accesses: int) -> Trace:
    """What happens before the access of this number: where a cut lies."""
    (batch,) = trace.batches(1 << 20)
    return trace.head(int(np.flatnonzero(batch.op <= LAST_ACCESS)[accesses]))


def less(whole: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    found = {name: n - before.get(name, 0) for name, n in whole.items() if not isinstance(n, dict)}
    exits = {name: n - before["exits_by_reason"].get(name, 0) for name, n in whole["exits_by_reason"].items()}
    at_end = {name: whole[name] for name in AT_END if name in whole}
    return {**found, **at_end, "exits_by_reason": {name: n for name, n in exits.items() if n}}


@pytest.mark.parametrize("config", ALL_SCHEMES, ids=lambda config: f"{config.name} {config.pages}")
@pytest.mark.parametrize("warm_up", [1, 777, ACCESSES - 1])
def test_after_a_warm_up(config: Config, warm_up: int) -> None:
    whole, before = simulate(MIXED, config), simulate(upto(MIXED, warm_up), config)
    found = simulate(MIXED, config, warm_up=warm_up)
    assert found.counters == less(whole.counters, before.counters)
    assert found.first == before.counters["accesses"] == warm_up
    assert found.cycles == pytest.approx(whole.cycles - before.cycles)
    assert found.tlb["l1d"]["lookups"] == whole.tlb["l1d"]["lookups"] - before.tlb["l1d"]["lookups"]
    assert found.content == whole.content


@pytest.mark.parametrize("interval", [1, 33, 1000, ACCESSES - 1, ACCESSES, ACCESSES + 1])
@pytest.mark.parametrize("warm_up", [0, 500])
def test_intervals(interval: int, warm_up: int) -> None:
    config = Config(mmu="shadow", memory="256M")
    found = simulate(MIXED, config, warm_up=warm_up, interval=interval)
    plain = simulate(MIXED, config, warm_up=warm_up)
    assert found.counters == plain.counters
    assert found.series is not None
    assert len(found.series) == -(-(ACCESSES - warm_up) // interval)
    parts = over_time([found])
    assert [part.first for part in parts] == list(range(warm_up, ACCESSES, interval))
    assert {part.counters["accesses"] for part in parts[:-1]} <= {interval}
    for name, n in plain.counters.items():
        if name not in (*AT_END, "exits_by_reason"):
            assert sum(part.counters[name] for part in parts) == n, name
    for reason, n in plain.counters["exits_by_reason"].items():
        assert sum(part.counters["exits_by_reason"].get(reason, 0) for part in parts) == n
    assert parts[-1].counters["vmm_tables"] == plain.counters["vmm_tables"]
    assert sum(part.cycles for part in parts) == pytest.approx(plain.cycles)
    middle = len(parts) // 2
    if interval > 1 and middle:
        at = parts[middle].first
        alone = simulate(upto(MIXED, at + interval) if at + interval < ACCESSES else MIXED, config, warm_up=at)
        assert parts[middle].counters == alone.counters


@pytest.mark.parametrize("chunk", [1, 7, 512, 1 << 18])
@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_neither_batches_nor_threads_change_it(chunk: int, jobs: int) -> None:
    configs = [Config(mmu="shadow", memory="256M"), Config(mmu="ept", vpid=True, memory="256M"), Config(memory="256M")]
    expected = [simulate(MIXED, config, warm_up=600, interval=250) for config in configs]
    found = list(each(Chunked(MIXED, chunk), configs, warm_up=600, interval=250, jobs=jobs))
    for one, other in zip(found, expected, strict=True):
        assert one.counters == other.counters
        assert one.series is not None
        assert other.series is not None
        assert one.series.rows() == other.series.rows()
    assert [row["slowdown"] for row in rows(over_time(found))] == [row["slowdown"] for row in rows(over_time(expected))]


def test_each_interval_has_the_slowdown_over_that_of_the_native_run() -> None:
    found = list(each(MIXED, [Config(memory="256M"), Config(mmu="ept", memory="256M")], interval=1000))
    parts = over_time(found)
    half = len(parts) // 2
    for row, native, ept in zip(rows(parts)[half:], parts[:half], parts[half:], strict=True):
        assert row["slowdown"] == ept.cycles_per_access / native.cycles_per_access
        assert row["first"] == native.first


@pytest.mark.parametrize("kept", [0, 3, 1 << 16])
def test_exits_are_those_of_the_region(kept: int) -> None:
    config = Config(mmu="ept", memory="256M", exit_log=kept)
    every: list[Any] = []
    simulate(MIXED, config, exits=every.append)
    some: list[Any] = []
    found = simulate(MIXED, config, warm_up=1500, exits=some.append)
    n = found.counters["vm_exits"]
    records = np.concatenate([np.empty(0, EXIT_DTYPE), *some])
    assert 0 < n == len(records)
    assert (records == np.concatenate(every)[-n:]).all()
    if kept:
        assert found.exit_log is not None
        assert len(found.exit_log) == min(kept, n)
        assert len(found.exit_log) + found.exit_log.lost == n


def test_a_system_trace_is_cut_between_its_records() -> None:
    trace = read_trace(SHELL)
    config = Config(mmu="ept", vpid=True, memory="2G")
    whole = simulate(trace, config)
    n = whole.counters["accesses"]
    for warm_up in (1, n // 3):
        found = simulate(trace, config, warm_up=warm_up, interval=n // 7)
        assert found.counters["accesses"] == n - warm_up
        assert found.series is not None
        first = {name: sums[0] for name, sums in found.series.sums().items()}
        for name in ("tlb_misses", "walks", "vm_exits", "ept_walk_refs"):
            assert found.counters[name] + first[name] == whole.counters[name]
        assert found.notes == whole.notes
    with pytest.raises(TraceError, match="--warm-up"):
        trace.skip(5)


def test_what_is_skipped_leaves_process_and_places() -> None:
    ops = [Op.SWITCH, Op.READ, Op.PLACE, Op.PLACE, Op.SWITCH, Op.SWITCH, Op.READ, Op.WRITE]
    sizes = [0, 8, 0, 12, 0, 0, 8, 8]
    addresses = [3, 0x1000, 0x5000, 0x9000, 4, 5, 0x5000, 0x6000]
    trace = Trace.from_arrays(addresses, ops, sizes)
    for chunk in (1, 2, 100):
        found = list(trace.skip(6).batches(chunk))
        assert [op for batch in found for op in batch.op] == [
            Op.SWITCH, Op.PLACE, Op.PLACE, Op.SWITCH, Op.READ, Op.WRITE
        ]  # fmt: skip
        assert [int(a) for batch in found for a in batch.addr] == [3, 0x5000, 0x9000, 5, 0x5000, 0x6000]
        assert max(map(len, found)) <= chunk
    assert trace.skip(0) is trace
    with pytest.raises(TraceError, match="skip fewer"):
        trace.skip(8)
    with pytest.raises(TraceError, match="skip fewer"):
        list(MIXED.data_only().skip(1 << 30).batches())
    with pytest.raises(TraceError, match="0 events or more"):
        trace.skip(-1)


def test_an_array_of_addresses() -> None:
    addresses = np.arange(5000, dtype=np.uint64) * np.uint64(512)
    whole, half = simulate(addresses), simulate(addresses, warm_up=3000, interval=700)
    assert half.counters["accesses"] == 2000
    assert (
        half.counters["tlb_misses"] == whole.counters["tlb_misses"] - simulate(addresses[:3000]).counters["tlb_misses"]
    )


def test_bad_regions_are_refused() -> None:
    config = Config(memory="256M")
    with pytest.raises(ConfigError, match=f"{ACCESSES} accesses.*give fewer"):
        simulate(MIXED, config, warm_up=ACCESSES)
    with pytest.raises(ConfigError, match="0 or more"):
        simulate(MIXED, config, warm_up=-1)
    with pytest.raises(ConfigError, match="1 or more"):
        simulate(MIXED, config, interval=0)


def sqlite(**how: Any) -> Result:
    return simulate(read_trace(bundled()["sqlite"]), Config(mmu="ept", vpid=True), **how)


def test_the_second_half_of_sqlite() -> None:
    """2.81 cycles an access overall, 2.42 in its second half: its first touches pages."""
    whole = sqlite()
    half = sqlite(warm_up=whole.counters["accesses"] // 2)
    assert round(whole.cycles_per_access, 2) == 2.81
    assert round(half.cycles_per_access, 2) == 2.42
