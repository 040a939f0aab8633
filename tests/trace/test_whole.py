"""Files that are whole or are not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastmmu.trace import whole
from fastmmu.trace.whole import whole_file

WRITER = """
import sys, time
from fastmmu.trace.whole import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"part")
    file.flush()
    print("in", flush=True)
    time.sleep(60)
"""


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(params=["no name", "copied", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file without a name that gets one; where the file system has no links; where it has no such files."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    if request.param == "copied":
        monkeypatch.setattr(os, "link", refused)
    if request.param == "named":
        monkeypatch.setattr(whole, "_unnamed", lambda directory: None)
    return str(request.param)


def test_it_appears_when_it_is_complete(way: str, tmp_path: Path) -> None:
    for old in (False, True):
        with whole_file(tmp_path / "f") as file:
            file.write(b"some" * 10_000)
            file.flush()
            assert left(tmp_path) == ["f"] * old or way == "named"
        assert left(tmp_path) == ["f"]
        assert (tmp_path / "f").read_bytes() == b"some" * 10_000
        assert whole.parts == set()
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_fails_leaves_nothing(way: str, tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt, OSError(28, "No space left on device", "x.part")):
        with pytest.raises(BaseException) as caught, whole_file(tmp_path / "f") as file:  # noqa: PT012
            file.write(b"some")
            raise error
        assert left(tmp_path) == []
        assert getattr(caught.value, "filename", None) in (None, str(tmp_path / "f"))
    assert whole.parts == set()


def test_a_writer_may_close_the_file(way: str, tmp_path: Path) -> None:
    with whole_file(tmp_path / "f") as file:
        file.write(b"some")
        file.close()
    assert (tmp_path / "f").read_bytes() == b"some"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    unnamed = whole._unnamed(tmp_path)
    if unnamed is None:
        pytest.skip("skipped: this file system has no files without a name")
    os.close(unnamed)
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "f")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as out:
        assert out.readline() == b"in\n"
        process.send_signal(number)
    assert process.wait(20) == -number
    assert left(tmp_path) == []
