"""`fastmmu kvm-log`: a log's page faults under other policies, beside machines that did them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from fastmmu import Config, ConfigError, KvmLog, read_kvm_log, replay_faults
from fastmmu.cli import main
from fastmmu.exits import FaultClass
from fastmmu.ops import Op
from fastmmu.study.kvm_log import POLICIES
from fastmmu.study.kvm_log.table import POLICIES as TITLES
from fastmmu.study.kvm_log.table import Read, kvm_log_plot, kvm_log_rows, kvm_log_table
from fastmmu.trace.kvm_log import KVM_EXIT_DTYPE, KVM_FAULT_DTYPE

LOGS = Path(__file__).parents[1] / "data" / "kvm_logs"


def log_of(pages: list[int], ops: list[int]) -> KvmLog:
    """A log with these faults, and no exits."""
    faults = np.zeros(len(pages), KVM_FAULT_DTYPE)
    faults["address"] = np.array(pages, np.uint64) << np.uint64(12)
    faults["op"], faults["class"] = ops, FaultClass.BUILD
    faults["time"] = np.arange(len(pages)) * 1000
    return KvmLog("made", "made", {}, np.zeros(0, KVM_EXIT_DTYPE), (), faults, "kvm_page_fault")


def left(log: KvmLog, **more: object) -> dict[str, int]:
    return {run.policy: run.exits for run in replay_faults(log, **more)}


def test_first_touches() -> None:
    """Each a page, once: what it takes to map them, told without the model."""
    pages = [3, 700, 701, 5000, 4, 1 << 22, (1 << 22) + 1]  # 4 KB pages; the last two at 16 GB
    found = left(log_of(pages, [Op.READ] * len(pages)))
    assert found["4k"] == len(pages)
    assert found["4k-older"] == len({page >> 3 for page in pages})  # prefetch fills aligned groups of 8
    assert found["2m"] == len({page >> 9 for page in pages})
    assert found["4k-log"] == found["4k-pml"] == found["4k-ring"] == len(pages)


def test_executed_pages_under_nx_huge_pages() -> None:
    """A huge page is not executable: each fetch takes a 4 KB page of its own."""
    found = left(log_of([0, 1, 2, 3], [Op.READ, Op.FETCH, Op.FETCH, Op.FETCH]), policies=["2m", "2m-nx"])
    assert found == {"2m": 1, "2m-nx": 4}


def test_writes_that_are_logged() -> None:
    """Read first, then logged, then written, twice: write protection stops each page once, PML none."""
    pages = list(range(512, 512 + 64))
    log = log_of([*pages, *pages], [Op.READ] * 64 + [Op.WRITE] * 64)
    assert left(log) == {
        "4k": 64, "4k-older": 8, "2m": 1, "2m-nx": 1, "4k-log": 128, "4k-pml": 64, "4k-ring": 128, "2m-log-late": 65,
        "2m-log": 65, "2m-pml": 1,
    }  # fmt: skip
    assert left(log, policies=["4k-log"], log_from=1.0) == {"4k-log": 64}
    by_class = next(replay_faults(log, ["4k-log"])).by_class
    assert by_class == {"build": 64, "dirty": 64}


def test_pml_that_is_full_is_an_exit() -> None:
    pages = list(range(2048))
    log = log_of([*pages, *pages], [Op.READ] * 2048 + [Op.WRITE] * 2048)
    (run,) = replay_faults(log, ["4k-pml"])
    assert run.by_class == {"build": 2048, "other": 3} or run.by_class["other"] in (3, 4)
    assert run.exits == sum(run.by_class.values())


def test_what_is_no_memory_is_left_out() -> None:
    log = read_kvm_log(LOGS / "perf.txt")
    mmio = int((log.faults["class"] == FaultClass.MMIO).sum())
    for run in replay_faults(log):
        assert (run.left_out, run.faults) == (mmio, len(log.faults) - mmio)
        assert run.saved == run.faults - run.exits >= 0
        assert run.course[0].tolist() == [0, 0]
        assert run.course[-1].tolist() == [run.faults, run.exits]
    high = log_of([1, 1 << 40], [Op.READ] * 2)
    assert next(replay_faults(high, ["4k"])).left_out == 1


def test_the_same_kvm_on_4_kb_pages_faults_as_recorded() -> None:
    """The recordings are of first touches: the model of that KVM leaves each fault."""
    for name in ("ftrace.txt", "trace-cmd.txt"):
        log = read_kvm_log(LOGS / name)
        (run,) = replay_faults(log, ["4k"])
        assert run.exits == run.faults == len(log.faults) == log.pages > 10


def test_what_cannot_be_run() -> None:
    with pytest.raises(ConfigError, match="no policy 'none'; there are 4k"):
        next(replay_faults(log_of([1], [0]), ["none"]))
    with pytest.raises(ConfigError, match="no faults of guest-physical pages"):
        next(replay_faults(log_of([], [])))
    with pytest.raises(ConfigError, match="log_from"):
        next(replay_faults(log_of([1], [0]), log_from=2.0))
    with pytest.raises(ConfigError, match="mmu='shadow'"):
        next(replay_faults(log_of([1], [0]), mmu="shadow"))


def test_every_policy_has_a_title() -> None:
    assert list(TITLES) == list(POLICIES)
    for fields in POLICIES.values():
        assert Config(**fields).mmu == "ept"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"--{kind}={tmp_path}/r.{kind}" for kind in ("json", "csv", "parquet")]
    logs = [str(LOGS / name) for name in ("perf.txt", "ftrace.txt")]
    assert main(["kvm-log", *logs, *files, "--plot", f"{tmp_path}/r.png"]) == 0
    out = capsys.readouterr().out
    for words in ("exits by reason", "page faults, ", "pages that faulted again", "the same faults under", "no memory"):
        assert words in out
    read = [Read(log, list(replay_faults(log))) for log in map(read_kvm_log, logs)]
    rows = kvm_log_rows(read)
    assert [
        {key: row[key] for key in rows[0]} for row in json.loads((tmp_path / "r.json").read_text())["counts"]
    ] == rows
    found = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [int(row["count"]) for row in found] == [row["count"] for row in rows]
    assert {row["section"] for row in found} == {"exit", "fault", "again", "policy"}
    for section in ("exit", "fault"):
        of = [row for row in rows if row["section"] == section and row["path"] == logs[0]]
        assert sum(row["share"] for row in of) == pytest.approx(1)
    assert (tmp_path / "r.png").stat().st_size > 10_000
    assert main(["kvm-log", logs[0], "--csv", "-", "--policies", "2m", "--host-pages", "4k"]) == 0
    (row,) = (row for row in csv.DictReader(capsys.readouterr().out.splitlines()) if row["section"] == "policy")
    assert int(row["count"]) == next(run.exits for run in read[0].policies if run.policy == "4k")


def test_a_log_without_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in (LOGS / "perf.txt").read_text().splitlines(True) if "kvm_entry" in line]
    (tmp_path / "kvm.txt").write_text("".join(lines))
    assert (
        main(["kvm-log", str(tmp_path / "kvm.txt"), "--plot", f"{tmp_path}/r.svg", "--csv", f"{tmp_path}/r.csv"]) == 0
    )
    assert "0 VM exits" in capsys.readouterr().out
    log = read_kvm_log(tmp_path / "kvm.txt")
    assert kvm_log_rows([Read(log, [])]) == []
    assert kvm_log_table(Read(log, [])).count("\n") == 1
    with pytest.raises(ConfigError):
        kvm_log_plot([Read(log, [])], tmp_path / "r.txt")
