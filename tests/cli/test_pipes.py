"""Files that are read as a whole, given as pipes: read to their end; without a writer refused, and never waited for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fastmmu.machine.wholly
from fastmmu import ConfigError
from fastmmu.cli import main
from fastmmu.machine.wholly import read_whole

DATA = Path(__file__).parents[1] / "data"
RUN = ["run", str(DATA / "true.lackey"), "--memory", "128M", "--quiet"]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastmmu.machine.wholly, "WAIT", 0.3)


@contextmanager
def fed(tmp_path: Path, name: str, data: bytes, *, parts: int = 1, late: float = 0.0) -> Iterator[Path]:
    """A pipe to which a thread writes."""
    pipe = tmp_path / name
    os.mkfifo(pipe)

    def write() -> None:
        time.sleep(late)
        with pipe.open("wb", buffering=0) as file:
            for part in range(parts):
                file.write(data[part * len(data) // parts : (part + 1) * len(data) // parts])
                time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    yield pipe
    writer.join()


def test_what_comes_out_of_a_pipe(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "file").write_bytes(data)
    assert read_whole(tmp_path / "file") == data
    for name, parts, late in (("at once", 1, 0.0), ("in parts", 7, 0.0), ("late", 3, 0.1)):
        with fed(tmp_path, name, data, parts=parts, late=late) as pipe:
            assert read_whole(pipe) == data
    reader, writer = os.pipe()
    os.write(writer, b"abc")
    os.close(writer)
    assert read_whole(f"/dev/fd/{reader}") == b"abc"  # as a shell's <(...)
    os.close(reader)


def test_what_has_no_end_or_no_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "nobody")
    started = time.monotonic()
    with pytest.raises(ConfigError, match="a pipe to which nobody writes; start its writer"):
        read_whole(tmp_path / "nobody")
    assert time.monotonic() - started < 5
    for path in ("/dev/zero", "/dev/null"):
        with pytest.raises(ConfigError, match="this is a device or socket"):
            read_whole(path)
    with pytest.raises(IsADirectoryError):
        read_whole(tmp_path)
    with pytest.raises(ConfigError, match="is no path"):
        read_whole("a\0b")
    monkeypatch.setattr(fastmmu.machine.wholly, "MOST", 1000)
    with fed(tmp_path, "endless", bytes(3000)) as pipe, pytest.raises(ConfigError, match="brought more than"):
        read_whole(pipe)


def test_commands_with_pipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.csv"
    costs = b"[access]\ntrace = 3.0\n"
    with fed(tmp_path, "costs", costs) as pipe:
        assert main([*RUN, "--csv", str(out), "--costs", str(pipe)]) == 0
    (tmp_path / "costs.toml").write_bytes(costs)
    again = tmp_path / "again.csv"
    assert main([*RUN, "--csv", str(again), "--costs", str(tmp_path / "costs.toml")]) == 0
    with fed(tmp_path, "first", out.read_bytes()) as first, fed(tmp_path, "second", again.read_bytes()) as second:
        assert main(["diff", str(first), str(second)]) == 0
    with fed(tmp_path, "turns", b"0 0 100\n0 1 75\n") as pipe:
        assert main(["host", *RUN[1:2], *RUN[1:2], *RUN[2:], "--schedule", str(pipe)]) == 0
    capsys.readouterr()
    for name, argv in {
        "c": [*RUN, "--costs"], "d": ["diff", str(out)], "s": ["host", *RUN[1:], "--schedule"],
    }.items():  # fmt: skip
        os.mkfifo(tmp_path / name)
        assert main([*argv, str(tmp_path / name)]) == 2
        assert "a pipe to which nobody writes" in capsys.readouterr().err
