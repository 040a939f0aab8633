"""Traces as threads of processes on the vCPUs of one machine: what they share, how they are scheduled; the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, ConfigError, simulate
from fastmmu.cli import main
from fastmmu.ops import Op
from fastmmu.study.consolidate import run_threads, threads_of
from fastmmu.study.consolidate.table import host_table
from fastmmu.trace import Trace
from fastmmu.trace.base import ArrayTrace
from fastmmu.trace.drmemtrace import DrmemtraceTrace
from tests.support.drmemtrace_files import file

SMALL = Config(mmu="ept", vpid=True, kvm="6.1", memory="256M", tlb="strict", find_missing_flushes=True)
BASE = 0x4000_0000


def thread(seed: int, n: int = 3000, unmaps: float = 0.02) -> Trace:
    """Accesses to pages that all threads use, and unmaps of some."""
    random = np.random.default_rng(seed)
    op = random.choice(np.array([Op.READ, Op.WRITE, Op.FETCH], np.uint8), n)
    op[random.random(n) < unmaps] = Op.UNMAP
    addr = BASE + (random.integers(0, 60, n) << 12).astype(np.uint64)
    return ArrayTrace(addr, op, np.ones(n, np.uint8), f"thread {seed}")


def total(found: object, name: str) -> int:
    return sum(result.counters[name] for result in found.results)  # type: ignore[attr-defined]


@pytest.mark.parametrize("config", [
    SMALL, SMALL.replace(shootdown="pv"), SMALL.replace(mmu="shadow"), SMALL.replace(mmu="native", vpid=False),
    SMALL.replace(vendor="amd", vpid=False, shootdown="invlpgb"),
])  # fmt: skip
def test_threads_share_an_address_space(config: Config) -> None:
    """Pages are mapped once, unmapping shoots down, nothing stale is used; processes have pages of their own."""
    traces = [thread(seed) for seed in range(4)]
    found = run_threads(traces, config, quantum=200)
    assert total(found, "accesses") + total(found, "unmaps") == 4 * 3000
    assert total(found, "shootdowns") > 50
    assert max(result.counters["stale_uses"] for result in found.results) == 0
    apart = run_threads(traces, config, quantum=200, processes=[0, 1, 2, 3])
    assert total(apart, "shootdowns") == 0
    assert total(apart, "pages_touched") > total(found, "pages_touched")
    assert [each.process for each in apart.threads] == [0, 1, 2, 3]
    if config.mmu != "shadow":
        without = run_threads(traces, config, quantum=200, omit=["shootdown"])
        assert max(result.counters["stale_uses"] for result in without.results) > 0


def test_a_thread_alone_is_a_program() -> None:
    trace = thread(1)
    found, alone = run_threads([trace], SMALL, quantum=100), simulate(trace, SMALL)
    for name in ("accesses", "pages_touched", "guest_faults", "unmaps", "invlpgs", "shootdowns"):
        assert found.results[0].counters[name] == alone.counters[name]
    assert (found.threads[0].events, found.threads[0].turns, found.threads[0].moves) == (3000, 30, 0)


def test_instructions_are_those_of_the_vcpu_that_ran_them() -> None:
    traces = [thread(seed) for seed in range(3)]
    assert "instructions" not in run_threads(traces, SMALL, vcpus=2).results[0].counters
    for trace in traces:
        trace.instructions = "fetches"
    found = run_threads(traces, SMALL, vcpus=2, quantum=500, seed=1)
    fetches = sum(int((batch.op == Op.FETCH).sum()) for trace in traces for batch in trace.batches())
    assert total(found, "instructions") == fetches
    assert all(result.instructions == result.counters["instructions"] > 0 for result in found.results)
    assert all(result.mpki is not None for result in found.results)


def test_threads_stay_or_move_as_they_are_told() -> None:
    traces = [thread(seed, 2000 + 500 * seed) for seed in range(6)]
    affinity = [[0], [1], [0, 1], [2], [0, 2], [0, 1, 2]]
    found = run_threads(traces, SMALL, vcpus=3, cpus=2, quantum=100, seed=5, migrate=0.5, affinity=affinity)
    for each, allowed in zip(found.threads, affinity, strict=True):
        assert {*each.vcpus} <= {*allowed}
        assert sum(each.vcpus.values()) == each.turns
    assert not any(each.moves for each, allowed in zip(found.threads, affinity, strict=True) if len(allowed) == 1)
    assert sum(each.moves for each in found.threads) > 3
    other = run_threads(traces, SMALL, vcpus=3, cpus=2, quantum=100, seed=6, migrate=0.5, affinity=affinity)
    assert [each.vcpus for each in found.threads] != [each.vcpus for each in other.threads]
    assert [each.events for each in found.threads] == [2000 + 500 * seed for seed in range(6)]


def test_the_same_seed_is_the_same_run() -> None:
    runs = [
        run_threads([thread(1), thread(2), thread(3)], SMALL, vcpus=2, quantum=70, seed=9, migrate=0.2) for _ in "ab"
    ]
    assert [result.counters for result in runs[0].results] == [result.counters for result in runs[1].results]
    assert runs[0].threads == runs[1].threads


def test_a_vcpu_without_threads_idles() -> None:
    """It is left alone by shootdowns; a thread that waits elsewhere is pulled first."""
    traces = [thread(1, 400, unmaps=0), thread(2, 6000)]
    lazy = run_threads(traces, SMALL, quantum=200)
    assert lazy.results[1].counters["shootdown_lazy"] > 50
    assert lazy.results[0].counters["exits_by_reason"]["hlt"] == 1
    more = run_threads([*traces, thread(3, 400), thread(4, 5000)], SMALL, vcpus=2, quantum=200)
    assert [each.moves for each in more.threads] == [0, 0, 0, 1]


def test_what_a_thread_switches_to_is_its_process_own() -> None:
    """Process k of a trace of process g is g + k times the processes; a thread that runs again finds its own."""
    rows = [(Op.SWITCH, 1), (Op.WRITE, BASE), (Op.FORK, 2), (Op.SWITCH, 2), *[(Op.READ, BASE)] * 20]
    columns = [np.array([row[i] for row in rows], np.uint64) for i in (0, 1)]
    trace = ArrayTrace(columns[1], columns[0].astype(np.uint8), np.ones(len(rows), np.uint8), "forks")
    found = run_threads([trace, trace], SMALL, processes=[0, 1], vcpus=1, quantum=2)
    assert total(found, "forks") == 2
    assert total(found, "pages_touched") == 2


def test_a_folder_of_drmemtrace_is_its_threads(tmp_path: Path) -> None:
    """By the processes that its files name."""
    folder = tmp_path / "drmemtrace.app.dir"
    folder.mkdir()
    for tid, pid in ((10, 10), (11, 10), (20, 20)):
        records = [(0, 8, BASE + 4096 * i) for i in range(tid)]
        (folder / f"drmemtrace.app.{tid}.trace").write_bytes(file(records, tid, pid))
    trace = DrmemtraceTrace(str(folder))
    assert [pid for pid, _ in trace.by_thread()] == [10, 10, 20]
    threads, processes = threads_of([thread(1), trace])
    assert processes == [0, 1, 1, 2]
    found = run_threads(threads, SMALL, processes=processes, quantum=5)
    assert [each.events for each in found.threads[1:]] == [10, 11, 20]
    only, numbers = threads_of([trace])
    assert numbers == [0, 0, 1]
    assert total(run_threads(only, SMALL, processes=numbers, quantum=5), "pages_touched") == 11 + 20


def test_what_cannot_be_is_refused() -> None:
    one = thread(1, 10)
    options: dict[str, Any]
    for traces, options, message in (
        ([], {}, "0 threads"), ([one], {"processes": [0, 1]}, "2 processes"), ([one], {"quantum": 0}, "quantum=0"),
        ([one], {"processes": [-1]}, "a process of 0"), ([one], {"affinity": [[1]]}, r"there are 0\.\.0"),
        ([one], {"affinity": [[]]}, "give some"), ([one], {"migrate": 0.5}, "a seed"),
        ([one], {"migrate": 2.0, "seed": 1}, "chance"), ([one], {"vcpus": 0}, "0 vCPUs"),
        ([one.head(0)], {}, "no events"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            run_threads(traces, SMALL, **options)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for seed in (1, 2, 3):
        paths.append(str(tmp_path / f"{seed}.npz"))
        batch = next(iter(thread(seed).batches()))
        np.savez(paths[-1], op=batch.op, size=batch.size, addr=batch.addr)
    results = str(tmp_path / "r.json")
    arguments = [
        "host",
        *paths,
        "--threads",
        "vcpus",
        "--cpus",
        "2",
        "--quantum",
        "100",
        "--vpid",
        "--memory",
        "256M",
        "--quiet",
    ]
    assert main([*arguments, "--json", results, "--shootdown", "pv"]) == 0
    out = capsys.readouterr().out
    assert "process 0: 3 threads" in out
    assert "shootdowns" in out
    assert sum(run["counters"]["shootdown_marked"] for run in json.loads(Path(results).read_text())["results"]) > 0
    assert main([*arguments, "--processes", "0,1,1", "--vcpus", "2", "--affinity", "0,1,0+1", "--seed", "3"]) == 0
    assert "process 1: 2 threads" in capsys.readouterr().out
    turns = tmp_path / "turns.csv"
    turns.write_text("0, 0, 5\n")
    for more, message in ((["--schedule", str(turns)], "give one"), (["--affinity", "0,5,1"], "there are 0..2")):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--processes", "0,x"])


def test_the_table_tells_threads() -> None:
    found = run_threads([thread(1), thread(2)], SMALL, quantum=300)
    assert "process 0: 2 threads, 0 moves" in host_table(found)
