"""A study: what its file means, what is run, what is kept, what is told."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, ConfigError, CostModel, Study, StudyError, simulate, write_trace
from fastmmu.cli.main import main
from fastmmu.study.sweep.columns import columns
from fastmmu.trace import Trace

pytest.importorskip("pyarrow", reason="results of studies are Parquet: fastmmu[arrow]")

CONFIGS = [Config(memory="1G", mmu=mmu, stlb=stlb) for mmu in ("native", "ept") for stlb in ("512/4", "1024/8")]


def accesses(seed: int, n: int = 3_000, pages: int = 900) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, pages, n, np.uint64) << 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(2):
        write_trace(Trace.from_arrays(accesses(i)), tmp_path / f"t{i}.npy")
    return tmp_path


STUDY = """
name = "sizes"
seed = 7
[traces]
a = "t0.npy"
b = { path = "t1.npy", limit = "1k" }
[config]
memory = "1G"
[grid]
mmu = ["shadow", "ept"]
vpid = [true, false]
stlb = ["512/4", "1024/8"]
[[configs]]
mmu = "native"
[[exclude]]
mmu = "shadow"
vpid = false
[costs]
now = {}
then = { generation = "prescott" }
"""


def study_file(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


# ---- the file ----------------------------------------------------------------------------------------------------


def test_a_file_is_traces_times_configurations_times_costs(folder: Path) -> None:
    study = Study.read(study_file(folder))
    assert list(study.traces) == ["a", "b"]
    assert [(c.mmu, c.vpid, c.stlb) for c in study.configs] == [
        ("shadow", True, "512/4"),
        ("shadow", True, "1024/8"),
        ("ept", True, "512/4"),
        ("ept", True, "1024/8"),
        ("ept", False, "512/4"),
        ("ept", False, "1024/8"),
        ("native", False, None),
    ]
    assert all(c.memory == "1G" for c in study.configs)
    assert len(study.plan()) == 2 * 7 * 2
    assert [run.costs for run in study.plan()[:2]] == ["now", "then"]
    assert study.events("a") == 3000
    assert study.events("b") == 1000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[grid]", "[gird]"), r"study.toml: gird: no such key; did you mean grid\?"),
        (("stlb =", "stbl ="), r"study.toml: grid.stbl: no such key; did you mean stlb\?"),
        (('mmu = ["shadow", "ept"]', 'mmu = ["shadow", "tdp"]'), r"grid.mmu = \"tdp\": choose from 'native', 'shadow'"),
        (("vpid = [true, false]", "vpid = true"), r"grid.vpid = True: give a list of values"),
        (('"512/4"', '"512/5"'), r"grid.stlb = \"512/5\": .*512/5"),
        (('limit = "1k"', 'limit = "lots"'), r"traces.b.limit = \"lots\": .* is no number >= 1"),
        (('limit = "1k"', 'limi = "1k"'), r"traces.b.limi: no such key; did you mean limit\?"),
        (('path = "t1.npy"', "path = 1"), r"traces.b.path: Expected `str`, got `int`"),
        (('"prescott"', '"prescot"'), r"costs.then: .*prescot"),
        (("seed = 7", 'seed = "7"'), r"seed = \"7\": expected a whole number"),
        (('memory = "1G"', 'memory = "1G"\npml = true'), r"pml=True needs mmu=.*\[\[exclude\]\]"),
        (("name =", "name ="), None),
        (("[config]", "[config"), r"study.toml: no TOML"),
        (('[traces]\na = "t0.npy"\nb = { path = "t1.npy", limit = "1k" }', ""), "traces: a table is missing"),
        (('mmu = ["shadow", "ept"]', 'mmu = ["ept"]\npml = [true]'), None),
    ],
)
def test_what_is_wrong_is_told_by_file_key_and_value(folder: Path, change: tuple[str, str], said: str | None) -> None:
    text = STUDY.replace(*change)
    path = study_file(folder, text)
    if said is None:
        Study.read(path)
        return
    assert text != STUDY
    with pytest.raises(ConfigError, match=said):
        Study.read(path)


def test_nothing_left_is_told(folder: Path) -> None:
    path = study_file(folder, '[traces]\na = "t0.npy"\n[[configs]]\nmmu = "ept"\n[[exclude]]\nmmu = "ept"\n')
    with pytest.raises(ConfigError, match="exclude: leaves no configuration"):
        Study.read(path)


# ---- results -----------------------------------------------------------------------------------------------------


def test_a_row_has_what_the_run_came_to(folder: Path) -> None:
    study = Study.read(study_file(folder))
    assert study.run("threads:2") == 28
    rows = study.results().to_pylist()
    assert [row["key"] for row in rows] == [run.key for run in study.plan()]
    for row, run in zip(rows, study.plan(), strict=True):
        expected = simulate(study.traces[run.trace].open(), run.config, costs=study.costs[run.costs])
        assert row["cycles"] == expected.cycles
        assert row["tlb_misses"] == expected.counters["tlb_misses"]
        assert row["exits_ept_violation"] == expected.counters["exits_by_reason"].get("ept_violation", 0)
        assert row["cycles_exit_ept_build"] == expected.cycles_by.get("exit:ept_build", 0)
        assert row["costs"] == expected.costs
        assert (row["mmu"], row["vpid"], row["stlb"]) == (run.config.mmu, run.config.vpid, run.config.stlb)
        assert (row["study"], row["seed"], row["cost_model"], row["memory"]) == ("sizes", 7, run.costs, 1 << 30)
        exits = sum(row[name] for name in columns() if name.startswith("exits_"))
        assert exits == row["vm_exits"]
        cycles = sum(row[name] for name in columns() if name.startswith("cycles_") and name != "cycles_per_access")
        assert cycles == pytest.approx(row["cycles"])


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    traces = {"a": accesses(0), "b": accesses(1)}
    study = Study(traces, CONFIGS[:2], results=tmp_path / "r")
    assert study.run("threads:1") == 4
    assert study.run("threads:1") == 0
    more = Study({"again": accesses(1)}, CONFIGS, results=tmp_path / "r")  # of the same content
    assert len(more.missing()) == 2
    assert more.run("threads:1") == 2
    assert len(list((tmp_path / "r/runs").iterdir())) == 6
    assert more.results().num_rows == 4


def test_what_determines_a_run_is_in_its_key(tmp_path: Path) -> None:
    def keys(*, seed: int = 0, trace: int = 0, config: Config = CONFIGS[0], costs: CostModel | None = None) -> set[str]:
        models = None if costs is None else {"default": costs}
        study = Study({"a": accesses(trace)}, [config], costs=models, results=tmp_path / "r", seed=seed)
        return {run.key for run in study.plan()}

    changed = [
        keys(), keys(seed=1), keys(trace=1), keys(config=CONFIGS[1]), keys(costs=CostModel.load(generation="prescott")),
        keys(config=CONFIGS[0].replace(vmm="python")),
    ]  # fmt: skip
    assert keys() == changed[0]
    assert len(set.union(*changed)) == len(changed)


def test_a_file_that_changed_is_another_trace(folder: Path) -> None:
    path = study_file(folder)
    study = Study.read(path)
    study.run("threads:1")
    write_trace(Trace.from_arrays(accesses(5)), folder / "t0.npy")
    os.utime(folder / "t0.npy", ns=(1, 1))
    assert {run.trace for run in Study.read(path).missing()} == {"a"}
    other = Study.read(path, results=folder / "other")
    other.plan()
    write_trace(Trace.from_arrays(accesses(6)), folder / "t0.npy")
    with pytest.raises(StudyError, match="trace a: its events are not those that the study was planned with"):
        other.run("threads:1")


def test_workers_may_be_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory,
                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    study_file(folder)
    monkeypatch.chdir(folder)
    studies = [Study.read("study.toml"), Study({"a": "t0.npy", "b": "sqlite"}, CONFIGS[:1], results="r")]
    assert studies[1].traces["b"].path == "sqlite"  # type: ignore[union-attr]
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    for study in studies:
        assert study.traces["a"].open().total == 3000


def test_contents_are_noted_with_the_file(folder: Path) -> None:
    path = study_file(folder)
    Study.read(path).run("threads:1")
    read: list[str] = []
    Study.read(path).plan(lambda trace, part, events: read.append(trace))
    assert read == []


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    study = Study({"a": accesses(0)}, CONFIGS, results=tmp_path / "r")
    study.run("threads:1")
    before = study.results()
    damaged, empty = sorted((tmp_path / "r/runs").iterdir())[:2]
    damaged.write_bytes(damaged.read_bytes()[:-200])
    empty.write_bytes(b"")
    assert study.run("threads:1") == 2
    assert study.results().drop(["seconds"]) == before.drop(["seconds"])


@pytest.mark.parametrize("name", ["r:1", "http:r", "a b", "r%20", "$r"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    """No name is taken for a URL of something else."""
    study = Study({"a": accesses(0)}, CONFIGS[:2], results=tmp_path / name)
    assert study.run("threads:1") == 2
    assert study.missing() == []
    assert study.results().num_rows == 2
    assert study._repr_html_().count("<tr>") == 3


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    study = Study({"a": accesses(0)}, CONFIGS, results=tmp_path / "r")
    with study.store.locked(), pytest.raises(StudyError, match="another process writes its results here"):
        Study({"a": accesses(0)}, CONFIGS, results=tmp_path / "r").run("threads:1")


def test_runs_that_fail_are_told_and_the_others_kept(tmp_path: Path) -> None:
    many = np.arange(40_000, dtype=np.uint64) << 12
    small = [Config(memory="64M"), Config(memory="1G")]
    study = Study({"a": accesses(0), "big": many}, small, results=tmp_path / "r")
    with pytest.raises(StudyError, match="1 of 4 runs failed, the others are kept: big under native: OutOfMemory") as e:
        study.run("threads:1")
    assert len(e.value.failed) == 1
    assert study.results().num_rows == 3
    assert [run.config.memory for run in study.missing()] == ["64M"]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the write fails half-way."""
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests.study.test_sweep import *
study = Study({{"a": accesses(0)}}, CONFIGS, results={str(tmp_path / "r")!r})
study.plan()
from fastmmu.study.sweep.store import Store
put, n = Store.put, 0
def limited(self, row):
    global n
    n += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000 if n == 3 else 10**7, 10**7))
    put(self, row)
Store.put = limited
try:
    study.run("threads:1")
except OSError as error:
    sys.exit(3)
"""
    ran = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert ran.returncode == 3
    study = Study({"a": accesses(0)}, CONFIGS, results=tmp_path / "r")
    assert [path.name for path in (tmp_path / "r/runs").iterdir() if path.suffix != ".parquet"] == []
    assert study.results().num_rows == 2
    assert study.run("threads:1") == 2
    assert study.results().num_rows == 4


def test_in_a_notebook(tmp_path: Path) -> None:
    study = Study({"a": accesses(0)}, CONFIGS, results=tmp_path / "r")
    assert study._repr_html_() == f"<p>&lt;Study &#x27;study&#x27;: 4 runs, results in {tmp_path / 'r'}&gt;</p>"
    study.run("threads:1")
    assert study._repr_html_().count("<tr>") == 5


# ---- executors ---------------------------------------------------------------------------------------------------


class Own:
    """An executor that is none of the standard library's: futures with result() and done()."""

    class Later:
        def __init__(self, work: Any, arguments: Any) -> None:
            self.work, self.arguments, self.asked = work, arguments, 0

        def done(self) -> bool:
            self.asked += 1
            return self.asked > 1

        def result(self) -> Any:
            return self.work(*self.arguments)

    def submit(self, work: Any, *arguments: Any) -> Later:
        return self.Later(work, arguments)


def made_by(executor: Any, folder: Path, jobs: int | None = None) -> list[dict[str, Any]]:
    study = Study({"a": accesses(0), "b": accesses(1)}, CONFIGS, results=folder)
    assert study.run(executor, jobs=jobs) == 8
    return [{k: v for k, v in row.items() if k != "seconds"} for row in study.results().to_pylist()]


def test_no_result_depends_on_the_executor(tmp_path: Path) -> None:
    expected = made_by("threads:1", tmp_path / "1")
    assert made_by("processes", tmp_path / "2", jobs=2) == expected
    assert made_by(Own(), tmp_path / "3") == expected
    with ThreadPoolExecutor(3) as pool:
        assert made_by(pool, tmp_path / "4") == expected
        assert pool.submit(int).result() == 0, "an executor of the caller's stays open"
    assert made_by("concurrent.futures:ThreadPoolExecutor", tmp_path / "5") == expected


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        ("cores", "'cores'.*choose from processes, threads, dask"),
        ("processes:two", "'two' is no number; write processes:4"),
        ("slurm:short", "'short' is no K=V"),
        ("no.such.module:Pool", "No module named 'no'"),
    ],
)
def test_an_executor_that_is_none_is_told(tmp_path: Path, executor: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Study({"a": accesses(0)}, CONFIGS, results=tmp_path / "r").run(executor)


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(study_file(folder))
    assert main(["sweep", path, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("to do") == 29
    assert "28 runs, 28 to do: about" in out
    assert main(["sweep", path, "--executor", "threads:2"]) == 0
    out = capsys.readouterr().out
    assert "28 of 28 runs finished; results in" in out
    assert main(["sweep", path, "--dry-run"]) == 0
    assert "28 runs, 0 to do" in capsys.readouterr().out
    assert main(["sweep", str(folder / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err


def test_what_is_no_path_and_what_has_no_end_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no path"):
        Study.read("\0")
    with pytest.raises(ConfigError, match="there is 0 in it"):
        Study({"a": accesses(1)}, range(1 << 40), results=tmp_path / "r")  # type: ignore[arg-type]


def test_a_warm_up_is_not_counted_and_makes_another_run(folder: Path) -> None:
    text = STUDY.replace('limit = "1k" }', 'limit = "1k", warm_up = 400 }')
    study = Study.read(study_file(folder, text))
    assert not {run.key for run in study.plan() if run.trace == "b"} & {
        run.key for run in Study.read(study_file(folder)).plan()
    }
    study.run("threads:1")
    for row in study.results().to_pylist():
        first, accesses = (400, 600) if row["trace"] == "b" else (0, 3_000)
        assert (row["first"], row["accesses"]) == (first, accesses)
    with pytest.raises(ConfigError, match=r"traces.b.warm_up = -1"):
        Study.read(study_file(folder, text.replace("400", "-1")))
