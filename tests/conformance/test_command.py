"""`python -m tests.conformance` on directories of other names and lengths, as others keep them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conformance import guests, systems, vectors
from tests.conformance.__main__ import main


def lines_of(output: str) -> list[str]:
    """The reports: what stands before the time in brackets."""
    return [line.partition(" [")[0] for line in output.splitlines() if " compared, " in line]


def test_sets_of_other_names_and_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fields of a vector say what it asks, whatever its file and its set are called."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for path in vectors.sets(vectors.sample_directory()):
        cut = list(vectors.read(path))[:7]
        renamed = [{**v, "s": f"{path.name[:2]}other", "i": 1000 + v["i"]} for v in cut]
        target = mine / f"{vectors.set_name(path)}_other.jsonl"
        target.write_text("".join(json.dumps(v) + "\n" for v in renamed))
    shutil.copytree(guests.sample_directory() / "pae_user", mine / "renamed")
    traces = str(systems.sample_directory())
    assert main(["--data", str(mine), "--guests", str(mine), "--traces", traces]) == 0
    reports = lines_of(capsys.readouterr().out)
    for path in vectors.sets(vectors.sample_directory()):
        assert f"{vectors.set_name(path)}_other: 7 compared, 0 mismatches, 0 not compared" in " ".join(reports)
    assert sum(line.startswith(("renamed/", "pae_user/")) for line in reports) == 16


def test_a_mismatch_fails_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    v = next(v for v in vectors.read(vectors.sample_directory() / "a_4level.jsonl.xz") if v["out"]["k"] == "ok")
    wrong = {**v, "out": {**v["out"], "pa": "123"}}
    wrong.pop("sdm", None)
    (tmp_path / "a_wrong.jsonl").write_text(json.dumps(wrong) + "\n")
    assert main(["--data", str(tmp_path), "--only", "a_wrong"]) == 1
    assert "a_wrong: 1 compared, 1 mismatches, 0 not compared" in capsys.readouterr().out

    place = tmp_path / "l2_idle"
    shutil.copytree(guests.sample_directory() / "l2_idle", place)
    expected = dict(np.load(place / "expected.npz"))
    expected["gpa"] = expected["gpa"] ^ np.uint64(0x1000)
    np.savez(place / "expected.npz", **expected)
    assert main(["--guests", str(tmp_path), "--only", "l2_idle", "--kernel"]) == 1
    assert f"l2_idle/gva2gpa: {len(expected['gva'])} compared, {len(expected['gva'])} mismatches" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("variable", ["FASTMMU_VECTORS", "FASTMMU_GUESTS"])
def test_a_named_directory_without_data_is_an_error(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sample takes the place of the default directory only: never of one that somebody asked for."""
    monkeypatch.setenv(variable, str(tmp_path / "absent"))
    assert main(["--only", "a_legacy32"]) == 2
    assert "no set to run in" in capsys.readouterr().err


def test_without_data_the_sample_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FASTMMU_VECTORS", raising=False)
    monkeypatch.setattr(vectors, "data_directory", lambda: tmp_path)
    assert main(["--only", "a_legacy32", "--spec"]) == 0
    out = capsys.readouterr().out
    assert "the sample in the project is used" in out
    assert lines_of(out) == ["a_legacy32: 250 compared, 0 mismatches, 0 not compared"]
