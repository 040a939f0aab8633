"""The readers on inputs that the fuzzer kept, and the fuzzer itself for a moment."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastmmu.errors import FastmmuError
from tests.files.fuzz import KEPT, __main__
from tests.files.fuzz.readers import READERS
from tests.support.bounded import bounded

for package in ("cramjam", "lzallright", "lz4", "zstandard", "pyarrow"):
    pytest.importorskip(package, reason=f"skipped: {package} is not installed")


@pytest.mark.parametrize("name", READERS)
def test_kept_inputs(name: str, tmp_path: Path) -> None:
    """Those of the repository, and the first of each reader."""
    inputs = [path.read_bytes() for path in sorted((KEPT / name).iterdir())] if (KEPT / name).is_dir() else []
    inputs += READERS[name].seeds()
    assert inputs, "there is nothing to begin with"
    read = 0
    for data in inputs:
        place = tmp_path / "one"
        place.mkdir()
        (place / "t").write_bytes(data)
        with bounded():
            READERS[name].read(place / "t")
            read += 1
        shutil.rmtree(place)
    assert read or name == "trace-any", "not one of them can be read"


def test_every_folder_of_inputs_has_a_reader() -> None:
    assert {path.name for path in KEPT.iterdir()} <= set(READERS)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="skipped: atheris is not installed")
def test_it_counts_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--only", "trace-gem5", "--place", str(tmp_path), "--inputs"]
    assert __main__.main([*arguments, "300"]) == 0
    assert "300 inputs of 1 readers, " in capsys.readouterr().out
    assert __main__.main([*arguments, "500"]) == 0
    assert "trace-gem5: 500 of 500 inputs" in capsys.readouterr().out
    assert len(list((tmp_path / "trace-gem5" / "corpus").iterdir())) > 1


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="skipped: atheris is not installed")
def test_what_goes_wrong_is_found_and_kept(tmp_path: Path) -> None:
    """A reader that divides by what the file says."""
    program = tmp_path / "wrong.py"
    program.write_text(
        "import sys\n"
        "from tests.files.fuzz import one, readers\n"
        "def divides(path):\n"
        "    data = path.read_bytes()\n"
        "    1 // (data[0] - 200 if data else 1)\n"
        "readers.READERS['wrong'] = readers.Reader(divides, lambda: iter([b'x']))\n"
        "one.main('wrong', '20000', *sys.argv[1:])\n"
    )
    for name in ("corpus", "wrong"):
        (tmp_path / name).mkdir()
    (tmp_path / "count").write_bytes(bytes(8))
    (tmp_path / "corpus" / "first").write_bytes(b"x")
    command = [sys.executable, str(program), *(str(tmp_path / name) for name in ("count", "corpus", "wrong"))]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ran.returncode != 0
    assert "ZeroDivisionError" in ran.stderr + ran.stdout
    (kept,) = (tmp_path / "wrong").iterdir()
    assert kept.read_bytes()[0] == 200


def test_errors_of_ours_are_right() -> None:
    """What `bounded` lets through."""
    with bounded():
        raise FastmmuError("a file that is none")
