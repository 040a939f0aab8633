"""Studies on real clusters of this machine: Dask's scheduler and workers as processes of their own, Ray, submitit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, Study, StudyError, write_trace
from fastmmu.trace import Trace

pytest.importorskip("pyarrow", reason="results of studies are Parquet: fastmmu[arrow]")
pytestmark = pytest.mark.slow

CONFIGS = [Config(memory="1G", mmu=mmu, stlb=f"{w * 128}/{w}") for mmu in ("native", "ept") for w in (2, 4, 8, 12)]


def a_study(folder: Path, n: int = 20_000) -> Study:
    """A trace in a file, and one in memory."""
    addresses = [np.random.default_rng(i).integers(0, 2_000, n, np.uint64) << 12 for i in range(2)]
    write_trace(Trace.from_arrays(addresses[0]), path := folder / "a.npy")
    return Study({"file": str(path), "memory": addresses[1]}, CONFIGS, results=folder / "results")


def rows(study: Study) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "path")} for row in study.results().to_pylist()]


def expected(folder: Path, n: int = 20_000) -> list[dict[str, Any]]:
    folder.mkdir()
    study = a_study(folder, n)
    study.run("threads:1")
    return rows(study)


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Address of a scheduler on loopback, and its two workers."""
    pytest.importorskip("distributed", reason="skipped: Dask is not installed; fastmmu[dask]")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env, "cwd": tmp_path}
    here = ["--scheduler-file", str(told)]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
               "--no-dashboard", *here]  # fmt: skip
    started = [subprocess.Popen(command, **quiet)]  # type: ignore[call-overload]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard",
              "--host", "127.0.0.1", *here]  # fmt: skip
    started += [subprocess.Popen(worker, **quiet) for _ in range(2)]  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 60
        while not (told.exists() and told.read_text().rstrip().endswith("}")):
            assert time.monotonic() < deadline, "no scheduler"
            time.sleep(0.1)
        yield json.loads(told.read_text())["address"], started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_dask(tmp_path: Path, dask: tuple[str, list[Any]]) -> None:
    study = a_study(tmp_path)
    assert study.run(f"dask:{dask[0]}") == 16
    assert rows(study) == expected(tmp_path / "here")


def test_a_worker_of_dask_dies(tmp_path: Path, dask: tuple[str, list[Any]]) -> None:
    n = 200_000
    study = a_study(tmp_path, n)
    killed = threading.Event()

    def progress(done: int, runs: int, last: str) -> None:
        if done >= 3 and not killed.is_set():
            dask[1][0].send_signal(signal.SIGKILL)
            killed.set()

    assert study.run(f"dask:{dask[0]}", progress=progress) == 16
    assert killed.is_set()
    assert rows(study) == expected(tmp_path / "here", n)


def test_no_scheduler_is_told(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="skipped: Dask is not installed; fastmmu[dask]")
    with pytest.raises(StudyError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        a_study(tmp_path).run("dask:tcp://127.0.0.1:9")


RAY = """
import os, signal, sys, threading
from pathlib import Path
from tests.study.test_sweep_clusters import *
folder, n = Path(sys.argv[1]), int(sys.argv[2])
study = a_study(folder, n)
killed = []
def progress(done, runs, last):
    if sys.argv[3] == "kill" and done >= 3 and not killed:
        import psutil
        workers = [p for p in psutil.process_iter(["cmdline"]) if "ray::run_task" in " ".join(p.info["cmdline"] or ())]
        if workers:
            workers[0].kill()
            killed.append(workers[0].pid)
made = study.run("ray", progress=progress)
print("made", made, "killed", len(killed))
"""


@pytest.mark.parametrize(("n", "how"), [(20_000, "whole"), (400_000, "kill")])
def test_ray(tmp_path: Path, n: int, how: str) -> None:
    """In a process of its own: Ray leaves threads and signal handlers behind."""
    pytest.importorskip("ray", reason="skipped: Ray is not installed; fastmmu[ray]")
    if how == "kill":
        pytest.importorskip("psutil", reason="skipped: psutil, which finds Ray's workers, is not installed")
    script = tmp_path / "drive.py"
    script.write_text(RAY)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    ran = subprocess.run(
        [sys.executable, script, tmp_path, str(n), how], env=env, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert f"made 16 killed {int(how == 'kill')}" in ran.stdout
    assert rows(a_study(tmp_path, n)) == expected(tmp_path / "here", n)


def test_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its local executor in the place of Slurm: a process a job, files of its own, futures that tell nobody."""
    pytest.importorskip("submitit", reason="skipped: submitit is not installed; fastmmu[slurm]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    study = a_study(tmp_path, 2_000)
    assert study.run("slurm:cluster=local,timeout_min=5") == 16
    assert rows(study) == expected(tmp_path / "here", 2_000)
