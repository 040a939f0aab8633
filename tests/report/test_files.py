"""Results in files: what is in them, and that a file is whole or is not there."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import threading
from pathlib import Path

import pytest

import fastmmu
from fastmmu.errors import ConfigError, MissingExtraError
from fastmmu.machine.config import Config
from fastmmu.machine.result import Result
from fastmmu.report import files, rows, save


@pytest.fixture
def results() -> list[Result]:
    base = {"accesses": 10, "walks": 2, "exits_by_reason": {}}
    more = {**base, "walks": 3, "exits_by_reason": {"ept_violation": 2}, "ept_build": 2}
    return [
        Result(Config(), base, 12.0, {"accesses": 10.0, "stlb": 2.0}, 0.5, 'a "quoted", name'),
        Result(
            Config(mmu="ept", l1d="64/4"), more, 8410.0, {"accesses": 10.0, "exit:ept_build": 8400.0}, 0.5, "t", False
        ),
    ]


def test_json_holds_everything(results: list[Result], tmp_path: Path) -> None:
    save(results, tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())["results"]
    assert [r["counters"] for r in found] == [r.counters for r in results]
    assert [r["cycles_by"] for r in found] == [r.cycles_by for r in results]
    assert [r["complete"] for r in found] == [True, False]
    assert found[1]["config"]["l1d"] == "64/4"


def made(results: list[Result], command: str = "") -> list[dict[str, object]]:
    return [{**row, "fastmmu": fastmmu.__version__, "command": command} for row in rows(results)]


def test_csv_holds_the_rows(results: list[Result], tmp_path: Path) -> None:
    save(results, tmp_path / "r.csv")
    found = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    wanted = [{key: "" if value is None else str(value) for key, value in row.items()} for row in made(results)]
    assert found == wanted


def test_parquet_holds_the_rows_with_types_that_do_not_depend_on_the_values(
    results: list[Result], tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    save(results, tmp_path / "r.parquet")
    save(results[1:], tmp_path / "one.parquet")
    table = parquet.read_table(tmp_path / "r.parquet")
    assert table.to_pylist() == made(results)
    one = parquet.read_table(tmp_path / "one.parquet").schema
    assert {name: one.field(name).type for name in ("slowdown", "l1d", "stlb", "cycles", "walks", "vpid")} == {
        name: table.schema.field(name).type for name in ("slowdown", "l1d", "stlb", "cycles", "walks", "vpid")
    }


def test_files_say_what_made_them(results: list[Result], tmp_path: Path) -> None:
    for name in ("r.json", "r.csv"):
        save(results, tmp_path / name, command="fastmmu compare x --csv 'a b'")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["fastmmu"] == fastmmu.__version__
    assert found["command"] == "fastmmu compare x --csv 'a b'"
    lines = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    assert {line["command"] for line in lines} == {"fastmmu compare x --csv 'a b'"}


def test_no_results_make_empty_files(tmp_path: Path) -> None:
    for format in ("json", "csv"):
        save([], tmp_path / f"r.{format}")
    assert json.loads((tmp_path / "r.json").read_text())["results"] == []
    assert (tmp_path / "r.csv").read_text() == ""


def test_unknown_format(results: list[Result], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format 'xls' of results; there are json, csv, parquet"):
        save(results, tmp_path / "r.xls")


def test_parquet_without_pyarrow_says_what_to_install(
    results: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    for attempt in (
        lambda: save(results, tmp_path / "r.parquet"),
        lambda: files.check_target(tmp_path / "r", "parquet"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'fastmmu\[arrow\]'"):
            attempt()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", ".part")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_whole(path, b"new")
    assert caught.value.filename == str(path)  # the name that the user gave
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert path.read_text() == "old"


def test_replacing_keeps_links_and_permissions(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    files.write_whole(link, b"new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    files.write_whole(pipe, b"data")
    reader.join()
    assert got == [b"data"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_what_cannot_be_written_is_found_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        files.check_target(tmp_path, "json")
    with pytest.raises(FileNotFoundError, match="make it first"):
        files.check_target(tmp_path / "no" / "r.json", "json")
    files.check_target(tmp_path / "r.json", "json")
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError):
            files.check_target(tmp_path / "r.json", "json")
