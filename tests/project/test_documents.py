"""The documents say what is so."""

from __future__ import annotations

import lzma
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fastmmu"
README = (ROOT / "README.md").read_text()


def test_each_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:\w+/)*\w+(?:\.(?:pyx|pxd|py|toml)|/))`", text))
    assert len(named) > 20
    assert [name for name in sorted(named) if not any((place / name).exists() for place in (PACKAGE, ROOT))] == []
    assert len(text.splitlines()) < 100


def test_each_room_stands_in_the_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert len(rooms) > 10
    assert [room for room in sorted(rooms) if f"`{room}`" not in text] == []


def test_each_kernel_that_python_sees_has_a_stub() -> None:
    seen = [
        path
        for path in PACKAGE.rglob("*.pyx")
        if re.search(r"^(?:def|cpdef|class|cdef class)\b", path.read_text(), re.MULTILINE)
    ]
    assert len(seen) > 3
    assert [path.name for path in seen if not path.with_suffix(".pyi").exists()] == []


def test_the_group_for_building_is_what_the_build_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["dependency-groups"]["build"] == project["build-system"]["requires"]


def test_the_readme_links_to_files_that_exist() -> None:
    links = re.findall(r"\]\(([^):#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where an example of the README finds its trace."""
    text = (ROOT / "tests" / "data" / "true.lackey").read_bytes()
    (tmp_path / "program.lackey.xz").write_bytes(lzma.compress(text))
    monkeypatch.chdir(tmp_path)
    return {}


def test_readme_walk(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXAMPLES[0], names)
    steps = names["fastmmu"].walk(names["mem"], names["state"], 0x400123).steps
    assert [hex(step.hpa) for step in steps] == ["0x1000", "0x2000", "0x3010", "0x4000", "0x7123"]
    addresses = np.array([0x400123, 0x500000], np.uint64)
    assert names["fastmmu"].translate(names["mem"], names["state"], addresses).pa.tolist() == [0x7123, 2**64 - 1]
    assert str(0x7123) in capsys.readouterr().out


def test_readme_simulate(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXAMPLES[1], names)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["shadow", "ept"]
    assert names["result"].counters["accesses"] > 100


def test_readme_policy(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXAMPLES[2], names)
    pages = names["policy"].pages
    assert len(pages) == len(set(pages)) == names["result"].counters["vm_exits"] > 10
    assert capsys.readouterr().out == f"{len(pages)} pages, {len(pages)} exits\n"
    plain = names["fastmmu"].simulate(names["trace"], names["result"].config)
    assert plain.counters == names["result"].counters


def test_the_table_in_the_readme_is_what_compare_prints(tmp_path: Path) -> None:
    """But for the last column, which is the speed of the simulator itself."""
    trace = PACKAGE / "traces" / "sqlite.lackey.xz"
    command = [sys.executable, "-m", "fastmmu", "compare", str(trace)]
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed, shown = (
        {" ".join(re.sub(r" +[\d.]+[kMG]?/s$", "", line).split()) for line in text.splitlines() if line.strip("─ ")}
        for text in (done.stdout, README.partition("sqlite joining tables")[2].partition("Shadow paging exits")[0])
    )
    table = {line for line in shown if not line.startswith("(the last")}
    assert len(table) > 10
    missing = table - printed
    assert missing == set(), "put what `fastmmu compare` now prints into README.md"


LINUX = Path(os.environ.get("FASTMMU_TRACES") or ROOT.parent / "shared" / "traces") / "shell.rec.zst"


@pytest.mark.skipif("FASTMMU_EXHAUSTIVE" not in os.environ, reason="skipped: FASTMMU_EXHAUSTIVE=1 runs it")
@pytest.mark.skipif(not LINUX.exists(), reason="skipped: no shell.rec.zst in FASTMMU_TRACES")
def test_the_linux_of_the_readme_is_what_replay_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastmmu", "replay", str(LINUX), "--schemes"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = README.partition("## A real Linux")[2].partition("Shadow paging that emulates")[0]
    rows = [" ".join(line.split()) for line in shown.splitlines() if line.startswith("    ") and line.strip(" ─")]
    assert len(rows) > 10
    assert [row for row in rows if row not in {" ".join(line.split()) for line in done.stdout.splitlines()}] == []
