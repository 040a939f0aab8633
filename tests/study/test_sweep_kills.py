"""A study that is killed: the next start makes what is missing; nothing is lost, nothing is there twice.

FASTMMU_KILLS=N: so many SIGKILLs of the process that drives the study; a hundredth as many of its workers.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, Study

pytest.importorskip("pyarrow", reason="results of studies are Parquet: fastmmu[arrow]")

KILLS = int(os.environ.get("FASTMMU_KILLS", "200"))
CONFIGS = [
    Config(memory="1G", mmu=mmu, stlb=f"{ways * 128}/{ways}") for mmu in ("native", "ept") for ways in (2, 4, 8, 12)
]


def a_study(folder: Path, n: int = 4_000, traces: int = 5) -> Study:
    made = {f"t{i}": np.random.default_rng(i).integers(0, 900, n, np.uint64) << 12 for i in range(traces)}
    return Study(made, CONFIGS, results=folder)


def rows(study: Study) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in study.results().to_pylist()]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    study = a_study(tmp_path_factory.mktemp("whole") / "r")
    assert study.run("threads:2") == 40
    return rows(study)


def killed(study: Study, after: float) -> bool:
    """The study runs in another process until it is finished, or killed."""
    child = os.fork()
    if not child:
        status = 1
        try:
            study.run("threads:2")
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def test_killed_at_any_point(tmp_path: Path, expected: list[dict[str, Any]]) -> None:
    chance, kills, ends = random.Random(1), 0, 0
    while kills < KILLS:
        folder = tmp_path / str(ends)
        study, seen, most = a_study(folder), 0, 0.04
        study.plan()
        while killed(study, chance.uniform(0.0, most)):
            kills += 1
            there = len(study.store.finished())
            assert there >= seen, "a finished run was lost"
            most *= 1.0 if there > seen else 1.3  # of a machine that is slow just now
            seen = there
        ends += 1
        assert rows(study) == expected
        assert sorted(path.stem for path in study.store.runs.iterdir()) == sorted(row["key"] for row in expected)
    assert ends >= 1


SLOW = 60_000


@pytest.mark.slow
def test_workers_that_die(tmp_path: Path) -> None:
    """Their runs are made again, by others, without a new start."""
    code = f"""
import sys
from pathlib import Path
from tests.study.test_sweep_kills import *
if __name__ == "__main__":
    a_study(Path({str(tmp_path / "r")!r}), SLOW, 3).run("processes:2")
"""
    script = tmp_path / "drive.py"
    script.write_text(code)
    driver = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    chance, kills, there = random.Random(2), 0, 0
    while driver.poll() is None and kills < max(1, KILLS // 100):
        time.sleep(chance.uniform(0.02, 0.1))
        now = len(list((tmp_path / "r/runs").glob("*"))) if (tmp_path / "r/runs").exists() else 0
        workers = [pid for pid in children(driver.pid) if b"spawn_main" in command(pid)]
        if now > there and workers:  # not the same ones over and over before anything comes of them
            os.kill(chance.choice(workers), signal.SIGKILL)
            kills, there = kills + 1, now
    assert driver.wait(timeout=240) == 0
    assert kills >= 1
    whole = a_study(tmp_path / "whole", SLOW, 3)
    whole.run("threads:2")
    assert rows(a_study(tmp_path / "r", SLOW, 3)) == rows(whole)


@pytest.mark.slow
def test_workers_end_with_their_driver(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.study.test_sweep_kills import *
if __name__ == "__main__":
    a_study(Path({str(tmp_path / "r")!r}), 10 * SLOW, 3).run("processes:2")
"""
    script = tmp_path / "drive.py"
    script.write_text(code)
    driver = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    deadline = time.monotonic() + 60
    while not (workers := [pid for pid in children(driver.pid) if b"spawn_main" in command(pid)]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    while any(b"spawn_main" in command(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers without a driver go on"
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_runs_that_keep_how_far_they_came(tmp_path: Path) -> None:
    """A long run is ended, and goes on; a checkpoint that is damaged is begun anew; none is left at the end."""
    made = {"t": np.random.default_rng(7).integers(0, 9000, 60_000, np.uint64) << 12}
    want = Study(made, CONFIGS[:2], results=tmp_path / "want")
    assert want.run("threads:1") == 2
    study = Study(made, CONFIGS[:2], results=tmp_path / "r", checkpoint_every=2000)
    chance, folder = random.Random(3), tmp_path / "r" / "checkpoints"
    for number in range(max(3, KILLS // 40)):
        if not killed(study, 0.3 + chance.random()):
            break
        for path in list(folder.glob("*.ckpt"))[: number == 1]:
            path.write_bytes(path.read_bytes()[:1000])
    study.run("threads:1")
    assert rows(study) == rows(want)
    assert not list(folder.glob("*.ckpt"))
