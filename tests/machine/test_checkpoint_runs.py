"""Runs that are ended and started again: the same results, whatever ended them, and whenever."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Checkpoint, CheckpointError, Config, ConfigError, Result, Simulation, Trace, read_trace, simulate
from fastmmu.cli import main
from fastmmu.machine.side_by_side import each
from fastmmu.ops import Op
from fastmmu.trace.bundle import bundled
from tests.support.checkpoints import CONFIGS

DATA = Path(__file__).parents[1] / "data"
SYSTEM = DATA / "systems" / "mm.rec.xz"
EXAMPLES = int(os.environ.get("FASTMMU_EXAMPLES", "8"))


def same(one: Result, other: Result) -> None:
    assert one.counters == other.counters
    assert one.tlb == other.tlb
    assert one.cycles_by == other.cycles_by
    assert (one.content, one.complete, one.first) == (other.content, other.complete, other.first)
    assert (one.series is None) == (other.series is None)
    if one.series is not None and other.series is not None:
        assert one.series.rows() == other.series.rows()
    if one.exit_log is not None and other.exit_log is not None:
        assert (one.exit_log.records == other.exit_log.records).all()


class Ended(Exception):
    pass


class Ends(Trace):
    """A trace whose reader is killed before the event of some number."""

    def __init__(self, inner: Trace, at: int) -> None:
        self.inner, self.at = inner, at
        self.name, self.instructions = inner.name, inner.instructions

    def batches(self, chunk: int = 5000) -> Iterator[Any]:
        done = 0
        for batch in self.inner.batches(chunk):
            done += len(batch)
            if done > self.at:
                raise Ended
            yield batch


@pytest.mark.parametrize("region", [{}, {"warm_up": 7001, "interval": 1500}], ids=["whole", "region"])
@pytest.mark.parametrize("name", ["native", "shadow-6.1", "ept-exits", "npt-asids", "ept-clock"])
def test_a_run_that_is_ended_again_and_again(name: str, region: dict[str, Any], tmp_path: Path) -> None:
    config, ends = CONFIGS[name], random.Random(name)
    trace = read_trace(bundled()["sqlite"]).head(60_000)
    want = simulate(trace, config, **region)
    how = {"checkpoint": Checkpoint(tmp_path / "c", 4096), **region}
    for at in sorted(ends.choices(range(60_000), k=4)):
        with pytest.raises(Ended):
            simulate(Ends(trace, at), config, **how)
    same(simulate(trace, config, **how), want)
    same(simulate(trace, config, **how), want)  # all of it was done


def test_blocks_of_other_sizes_come_to_the_same(tmp_path: Path) -> None:
    addresses = np.random.default_rng(3).integers(0, 1 << 24, 20_000, dtype=np.uint64)
    want = simulate(addresses, Config(mmu="ept"))
    with pytest.raises(Ended):
        simulate(
            Ends(Trace.from_arrays(addresses), 13_000), Config(mmu="ept"), checkpoint=Checkpoint(tmp_path / "c", 999)
        )
    assert simulate(addresses, Config(mmu="ept"), checkpoint=Checkpoint(tmp_path / "c", 777)).counters == want.counters


def test_pages_that_a_trace_places(tmp_path: Path) -> None:
    """The configuration changes at the first of them."""
    op = np.array([Op.PLACE, Op.PLACE, Op.READ] * 400, np.uint8)
    size = np.array([0, 12, 8] * 400, np.uint8)
    at = np.arange(400, dtype=np.uint64) << np.uint64(12)
    addr = np.stack([at, at + np.uint64(1 << 20), at], axis=1).reshape(-1)
    trace = Trace.from_arrays(addr, op=op, size=size)
    want = simulate(trace, Config(memory="64M"))
    with pytest.raises(Ended):
        simulate(Ends(trace, 600), Config(memory="64M"), checkpoint=Checkpoint(tmp_path / "c", 100))
    same(simulate(trace, Config(memory="64M"), checkpoint=Checkpoint(tmp_path / "c", 100)), want)


@pytest.mark.parametrize("mmu", ["native", "shadow", "ept"])
def test_a_system_trace(mmu: Any, tmp_path: Path) -> None:
    trace, config = (
        read_trace(SYSTEM).head(9000),
        Config(mmu=mmu, shadow_keys=True, memory="2G"),
    )
    want = simulate(trace, config)
    for part in (3000, 7000):
        simulate(read_trace(SYSTEM).head(part), config, checkpoint=Checkpoint(tmp_path / "c", 500))
    found = simulate(trace, config, checkpoint=Checkpoint(tmp_path / "c", 500))
    same(found, want)
    assert found.notes == want.notes


def test_simulations_fed_by_hand(tmp_path: Path) -> None:
    trace = read_trace(bundled()["zstd"]).head(30_000)
    whole = stopped = None
    for name in ("shadow-6.1", "ept-exits"):
        whole, stopped = Simulation(CONFIGS[name]), Simulation(CONFIGS[name])
        whole.counted = stopped.counted = trace.instructions
        for i, batch in enumerate(trace.batches(7000)):
            whole.feed(batch)
            stopped.feed(batch)
            if i in (0, 2):
                stopped.save(tmp_path / "c")
                stopped = Simulation.from_checkpoint(tmp_path / "c")
        same(stopped.result(), whole.result())
        assert stopped.events == whole.events == 30_000
    assert stopped is not None
    stopped.machine.save(tmp_path / "m")
    with pytest.raises(CheckpointError, match="of no Simulation"):
        Simulation.from_checkpoint(tmp_path / "m")
    with pytest.raises(CheckpointError, match="a machine's, and no run's"):
        simulate(trace, CONFIGS["ept-exits"], checkpoint=Checkpoint(tmp_path / "m"))


def test_several_cpus_are_refused(tmp_path: Path) -> None:
    path = next((DATA / "systems_smp").glob("*.rec*"))
    with pytest.raises(CheckpointError, match="CPUs is not saved"):
        simulate(read_trace(path), Config(memory="2G"), checkpoint=Checkpoint(tmp_path / "c", 500))


def test_those_of_other_runs_are_refused(tmp_path: Path) -> None:
    addresses = np.arange(1000, dtype=np.uint64) * 4096
    kept = Checkpoint(tmp_path / "c", 100)
    simulate(addresses, Config(mmu="ept"), checkpoint=kept)
    with pytest.raises(CheckpointError, match=r"of a run with vpid=False, this one has True; remove"):
        simulate(addresses, Config(mmu="ept", vpid=True), checkpoint=kept)
    with pytest.raises(CheckpointError, match="warm_up and interval"):
        simulate(addresses, Config(mmu="ept"), checkpoint=kept, warm_up=5)
    with pytest.raises(CheckpointError, match="of another trace: its first 1000 events are others"):
        simulate(addresses[::-1], Config(mmu="ept"), checkpoint=kept)
    with pytest.raises(CheckpointError, match="of 1000 events, and the trace has 10"):
        simulate(addresses[:10], Config(mmu="ept"), checkpoint=kept)
    with pytest.raises(ConfigError, match="exits="):
        simulate(addresses, Config(mmu="ept"), checkpoint=kept, exits=print)
    with pytest.raises(ConfigError, match="every=0"):
        Checkpoint(tmp_path / "c", 0)
    with pytest.raises(ConfigError, match="1 checkpoints of 2"):
        each(Trace.from_arrays(addresses), [Config(), Config(mmu="ept")], checkpoints=[kept])


# ---- the command line --------------------------------------------------------------------------------------------


def figures(path: Path) -> list[Any]:
    """What a file of results says, but for times."""
    found = json.loads(path.read_text())["results"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


@pytest.mark.parametrize("command", ["run {t} --mmu ept --vpid", "compare {t} --schemes shadow,ept+vpid"])
def test_killed_at_random_points(command: str, tmp_path: Path) -> None:
    """By SIGKILL, and started again until it ends by itself."""
    at_random, chance = np.random.default_rng(4), random.Random(command)
    np.save(tmp_path / "t.npy", at_random.integers(0, 1 << 28, 150_000, dtype=np.uint64))
    line = command.format(t=tmp_path / "t.npy").split()
    assert main([*line, "--quiet", "--memory", "2G", "--json", str(tmp_path / "want.json")]) == 0
    whole = [sys.executable, "-m", "fastmmu", *line, "--quiet", "--memory", "2G", "--json", str(tmp_path / "r.json")]
    whole += ["--checkpoint", str(tmp_path / "c"), "--checkpoint-every", "5000"]
    kills = 0
    while not (tmp_path / "r.json").exists():
        process = subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if kills < EXAMPLES:
            before = len(list(tmp_path.iterdir()))
            until = time.monotonic() + 60
            while process.poll() is None and kills == 0 and len(list(tmp_path.iterdir())) == before:
                assert time.monotonic() < until  # the first checkpoint is there
                time.sleep(0.001)
            time.sleep(chance.random() * 0.6)
            process.kill()
            kills += 1
        said = process.communicate()[1]
        assert process.returncode in (0, -9), said
    assert figures(tmp_path / "r.json") == figures(tmp_path / "want.json")


def test_a_replay_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for limit in ("5000", "9000", "9000"):
        line = f"replay {SYSTEM} --mmu ept --memory 2G --limit {limit} --quiet --checkpoint {tmp_path / 'c'}"
        assert main([*line.split(), "--checkpoint-every", "600"]) == 0
        said.append(capsys.readouterr().out.splitlines()[:2])
    assert main(f"replay {SYSTEM} --mmu ept --memory 2G --limit 9000 --quiet".split()) == 0
    assert said[1] == said[2] == capsys.readouterr().out.splitlines()[:2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run {t} --checkpoint-every 5", "--checkpoint-every goes with --checkpoint"),
        ("run {t} --checkpoint -", "name a file"),
        ("run {t} --checkpoint {d}", "directory"),
        ("run {t} --checkpoint {d}/no/c", "there is no directory"),
        ("run {t} --checkpoint {t}", "no checkpoint, or damaged"),
        ("replay {r} --checkpoint {d}/c --schemes", "leave out --schemes"),
        ("replay {r} --checkpoint {d}/c --omit stores", "leave out --omit"),
        ("run {t} --mmu ept --exits {d}/e.csv --checkpoint {d}/c", "leave out --checkpoint"),
    ],
)
def test_what_the_command_line_refuses(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "t.npy", np.arange(100, dtype=np.uint64))
    assert main(line.format(t=tmp_path / "t.npy", d=tmp_path, r=SYSTEM).split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
