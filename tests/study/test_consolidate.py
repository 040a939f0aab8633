"""Traces on the CPUs of one host: turns, schedules, machines of several vCPUs; the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fastmmu
from fastmmu import Config, ConfigError, simulate
from fastmmu.cli import main
from fastmmu.ops import Op
from fastmmu.study import consolidate
from fastmmu.study.consolidate.table import host_table
from fastmmu.trace import Trace, bundled, tpr_profile, with_tpr

CONFIG = Config(mmu="ept", vpid=True, memory="1G")


def programs(n: int, events: int = 30_000) -> list[Trace]:
    real = [fastmmu.read_trace(path) for path in bundled().values()]
    return [real[i % len(real)].head(events + 1000 * i) for i in range(n)]


def test_one_program_is_a_simulation() -> None:
    (trace,) = programs(1)
    found, alone = consolidate([trace], CONFIG, quantum=777), simulate(trace, CONFIG)
    first = {"invvpid", "invept"}  # it ran on its CPU for the first time
    mine = found.results[0].counters
    assert {k: v for k, v in mine.items() if k not in first} == {
        k: v for k, v in alone.counters.items() if k not in first
    }
    assert found.totals["switches"] == found.totals["migrations"] == 0


@pytest.mark.parametrize("one_machine", [False, True])
@pytest.mark.parametrize(("n", "cpus", "moves"), [(3, 1, False), (2, 2, False), (3, 2, True), (5, 3, True)])
def test_turns(n: int, cpus: int, moves: bool, one_machine: bool) -> None:
    """Every event runs, in turns; who has a CPU of its own never moves."""
    found = consolidate(programs(n), CONFIG, cpus=cpus, quantum=5000, one_machine=one_machine)
    for i, result in enumerate(found.results):
        assert result.counters["accesses"] == 30_000 + 1000 * i
    assert (found.totals["migrations"] > 0) is moves
    assert (found.totals["switches"] > 0) is (n > cpus)
    exits = [r.counters["exits_by_reason"].get("external_interrupt", 0) for r in found.results]
    assert sum(exits) == found.totals["switches"] + found.totals["ipis"]
    assert found.vpids == tuple(range(1, n + 1))


def test_neighbours_cost_misses_and_vpid_saves_them() -> None:
    """Two programs on one CPU: without VPID a turn begins with an empty TLB; with it what the other left over."""
    both = programs(2, 100_000)
    alone = sum(simulate(trace, CONFIG).counters["tlb_misses"] for trace in both)
    misses = {}
    for vpid in (True, False):
        found = consolidate(both, CONFIG.replace(vpid=vpid), quantum=1000)
        misses[vpid] = sum(result.counters["tlb_misses"] for result in found.results)
    assert alone <= misses[True] < misses[False]


def test_a_schedule() -> None:
    turns = [(0, 0, 5000), (1, 1, 2500), (1, 0, 5000), (0, 1, 40_000), (0, 0, 10)]
    found = consolidate(programs(2), CONFIG, cpus=2, schedule=turns)
    assert [result.counters["accesses"] for result in found.results] == [10_010, 31_000]
    assert found.totals["migrations"] == 3
    assert found.unfinished == 40_000 - 28_500
    for turns in ([(2, 0, 1)], [(0, 2, 1)]):
        with pytest.raises(ConfigError, match="there are 2 vCPUs and 2 CPUs"):
            consolidate(programs(2), CONFIG, cpus=2, schedule=turns)


def test_processes_of_vcpus_of_one_machine_stay_apart() -> None:
    """Both programs switch between processes 0 and 1: four address spaces, not two."""
    op = np.array([0, 0, Op.SWITCH, 0, 0, Op.SWITCH] * 20, np.uint8)
    addr = np.array([1 << 20, 2 << 20, 1, 1 << 20, 3 << 20, 0] * 20, np.uint64)
    trace = Trace.from_arrays(addr, op)
    found = consolidate([trace, trace], CONFIG, one_machine=True, quantum=7)
    assert [result.counters["pages_touched"] for result in found.results] == [4, 4]


def test_what_cannot_be_is_refused() -> None:
    for traces, config, options in (
        ([], CONFIG, {}),
        (programs(2), [CONFIG], {}),
        (programs(1), CONFIG, {"quantum": 0}),
    ):
        with pytest.raises(ConfigError, match="configuration for each trace"):
            consolidate(traces, config, **options)  # type: ignore[arg-type]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule, out = tmp_path / "turns.csv", tmp_path / "r.json"
    schedule.write_text("# CPU, vCPU, events\n0, 0, 2000\n1, 1, 3000\n\n1, 0, 1000\n")
    line = ["host", "sqlite", "zstd", "--cpus", "2", "--vpid", "--exit-pages", "8", "--memory", "1g"]
    assert main([*line, "--schedule", str(schedule), "--json", str(out), "--kvm", "6.1"]) == 0
    text = capsys.readouterr().out
    assert "2 physical CPUs: 1 switches, 1 migrations" in text or "2 physical CPUs: 2 switches, 1 migrations" in text
    results = json.loads(out.read_text())["results"]
    assert [result["counters"]["accesses"] for result in results] == [3000, 3000]
    assert results[0]["counters"]["host_accesses"] == 8 * results[0]["counters"]["vm_exits"]
    schedule.write_text("0, 0\n")
    assert main([*line, "--schedule", str(schedule)]) == 2
    assert "line 1: '0, 0' is no turn" in capsys.readouterr().err


def test_vcpus_with_an_apic_have_a_table_of_their_own() -> None:
    """IPIs between the vCPUs of one machine, by way; without an APIC nothing is said of them."""
    profile = tpr_profile("win2003", ipis=3000, interrupts=500, changes=2000)
    chance = np.random.default_rng(3)
    plain = [Trace.from_arrays(0x40_0000 + chance.integers(0, 1 << 16, 20_000) * 8, name=f"t{i}") for i in range(3)]
    traces = [with_tpr(trace, profile, i, 3) for i, trace in enumerate(plain)]
    delivered = set()
    for way in ("trap", "flexpriority", "apicv"):
        config = Config(mmu="ept", memory="64M", tpr=way, guest_handler="irql")
        found = consolidate(traces, config, cpus=3, quantum=500, one_machine=True)
        kicks, posted = found.totals["kicks"], found.totals["notifications"]
        assert found.totals["interprocessor"] == sum(r.counters["apic_ipis"] for r in found.results) > 100
        assert (kicks > 0, posted > 0) == (way != "apicv", way == "apicv")
        delivered.add(tuple(r.counters["apic_delivered"] for r in found.results))
        lines = host_table(found).splitlines()
        first = next(i for i, line in enumerate(lines) if "kicks" in line)
        assert [line.split()[:4] for line in lines[first + 2 : first + 5]] == [
            [f"{i}", f"t{i}", "as", "win2003"] for i in range(3)
        ]
    assert len(delivered) == 1
    assert "kicks" not in host_table(consolidate(plain, Config(mmu="ept", memory="64M")))
