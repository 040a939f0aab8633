"""Recording: real programs under the real Valgrind."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fastmmu.cli import main
from fastmmu.errors import ConfigError, FastmmuError, TraceError
from fastmmu.trace import Batch, read_trace, valgrind
from fastmmu.trace.events import concatenate
from fastmmu.trace.record import record

pytest.importorskip("pyarrow", reason="skipped: the extra arrow is not installed")
needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="skipped: Valgrind is not installed")
pytestmark = pytest.mark.slow


def events(path: str | Path) -> Batch:
    return concatenate(list(read_trace(path).batches()))


def narrow_program(path: Path) -> Path:
    """A static 32-bit program that ends with exit code 3."""
    code = bytes.fromhex("b801000000bb03000000cd80")
    at = 0x08048000
    head = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 3, 1, at + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    head += struct.pack("<IIIIIIII", 1, 0, at, at, 84 + len(code), 84 + len(code), 5, 0x1000)
    path.write_bytes(head + code)
    path.chmod(0o755)
    return path


@needs_valgrind
def test_the_events_are_those_of_lackeys_text(tmp_path: Path) -> None:
    text = tmp_path / "text.lackey"
    command = ["valgrind", "--tool=lackey", "--trace-mem=yes", f"--log-file={text}", "/bin/true"]
    subprocess.run(command, check=True)
    made = record(["/bin/true"], str(tmp_path / "true.arrow"))
    found, right = events(made.files[0].path), events(text)
    # the environment on the stack and the time in the vDSO differ by a few instructions from run to run
    assert abs(len(found) - len(right)) < len(right) // 100
    same = 20_000
    assert (found.op[:same] == right.op[:same]).all()
    assert (found.addr[:same] == right.addr[:same]).mean() > 0.9
    assert made.files[0].events == len(found)
    assert made.files[0].instructions == int((found.op == 3).sum())
    assert read_trace(made.files[0].path).instructions == "fetches"
    assert (made.status, made.interrupted, made.limited, made.replaced, made.other_lines) == (0, False, False, False, 0)


@needs_valgrind
def test_no_instruction_is_lost(tmp_path: Path) -> None:
    """Lackey's own count, which it prints at the end of a log."""
    log = tmp_path / "log"
    out = tmp_path / "ls.arrow"
    made = record(["ls", "/"], str(out))
    subprocess.run(["valgrind", "--tool=lackey", f"--log-file={log}", "ls", "/"], capture_output=True, check=True)
    counted = next(line for line in log.read_text().splitlines() if "guest instrs:" in line)
    right = int(counted.split()[-1].replace(",", ""))
    assert abs(made.files[0].instructions - right) < right // 100


@needs_valgrind
def test_skip_and_limit(tmp_path: Path) -> None:
    whole = record(["/bin/true"], str(tmp_path / "whole.arrow"))
    part = record(["/bin/true"], str(tmp_path / "part.arrow"), skip=1000, limit=5000)
    assert (part.limited, part.files[0].events, whole.limited) == (True, 5000, False)
    assert (events(part.files[0].path).op == events(whole.files[0].path).op[1000:6000]).all()
    with pytest.raises(TraceError, match="the program ended before --skip 1000000000"):
        record(["/bin/true"], str(tmp_path / "none.arrow"), skip=10**9)
    assert not (tmp_path / "none.arrow").exists()


@needs_valgrind
def test_each_process_has_a_file(tmp_path: Path) -> None:
    program = "(:; :); true >/dev/null | cat; exec env true"
    made = record(["sh", "-c", program], str(tmp_path / "sh.arrow"), children=True)
    said = [file.command.split()[0] if not file.command.startswith("fork") else "fork" for file in made.files]
    assert said[0].endswith("sh")
    assert {Path(name).name for name in said} == {"sh", "fork", "cat", "env", "true"}
    assert [file.path for file in made.files] == [
        str(tmp_path / f"sh{'' if i == 1 else f'.{i}'}.arrow") for i in range(1, len(made.files) + 1)
    ]
    for file in made.files:
        assert len(events(file.path)) == file.events > 500
    ran = [file for file in made.files if file.command.endswith("/true") and "env" not in file.command]
    alone = record(["/bin/true"], str(tmp_path / "true.arrow")).files[0]
    assert (
        abs(ran[-1].instructions - alone.instructions) < alone.instructions // 10
    )  # another path, another environment


@needs_valgrind
def test_children_are_left_out(tmp_path: Path) -> None:
    alone = record(["sh", "-c", "(:); :"], str(tmp_path / "a.arrow"))
    assert len(alone.files) == 1
    with_children = record(["sh", "-c", "(:); :"], str(tmp_path / "b.arrow"), children=True)
    assert len(with_children.files) == 2
    assert with_children.files[1].command == f"fork of {with_children.files[0].command}"


@needs_valgrind
def test_a_program_that_becomes_another_is_told(tmp_path: Path) -> None:
    assert record(["sh", "-c", "exec true"], str(tmp_path / "a.arrow")).replaced


@needs_valgrind
@pytest.mark.parametrize(("how", "status"), [("exit 7", 7), ("kill -SEGV $$", -11), ("kill -KILL $$", -9)])
def test_how_the_program_ended(how: str, status: int, tmp_path: Path) -> None:
    made = record(["sh", "-c", how], str(tmp_path / "a.arrow"))
    assert made.status == status
    assert made.files[0].events > 10_000


@needs_valgrind
def test_the_streams_are_the_programs_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastmmu", "record", "-o", str(tmp_path / "cat.arrow"), "--", "sh", "-c"]
    command += ["cat; echo -5 --n >&2; exit 4", "--n", "-5"]
    done = subprocess.run(command, input="in\n", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "in\n")
    lines = done.stderr.splitlines()
    assert lines[0] == "-5 --n"
    assert "cat.arrow: " in lines[1]
    assert lines[2] == "fastmmu: the program ended with exit code 4"
    assert len(lines) == 3


@needs_valgrind
def test_a_signal_keeps_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = 0

    def stopped() -> int:
        nonlocal asked
        asked += 1
        return 15 if asked > 5 else 0

    out = tmp_path / "loop.arrow"
    made = record(["sh", "-c", "while :; do :; done"], str(out), stopped=stopped)
    assert made.interrupted
    assert made.status < 0
    assert made.files[0].events == len(events(out)) > 0
    assert main(["trace", "info", str(out)]) == 0
    assert capsys.readouterr().err == f"fastmmu: {out}: the recording was interrupted: more would have come\n"
    trace = read_trace(out)
    assert trace.notes() == []  # nothing was read yet
    assert sum(len(batch) for batch in trace.batches(1000)) == made.files[0].events
    assert len(trace.notes()) == 1


@needs_valgrind
@pytest.mark.skipif(not list(Path("/usr/libexec/valgrind").glob("lackey-x86-linux")), reason="skipped: no 32-bit tool")
@pytest.mark.parametrize("children", [False, True])
def test_a_32_bit_program(tmp_path: Path, children: bool) -> None:
    made = record([str(narrow_program(tmp_path / "narrow"))], str(tmp_path / "a.arrow"), children=children)
    assert made.status == 3
    assert events(tmp_path / "a.arrow").addr.tolist()[0] == 0x08048054


@needs_valgrind
def test_a_full_disk(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from fastmmu.trace.record import record\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        f"record(['ls', '/'], {str(tmp_path / 'a.arrow')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "a.arrow: cannot be written: File too large; free some space, or record less" in done.stderr
    assert list(tmp_path.iterdir()) == []


def refusals(place: Path) -> list[tuple[list[str], str]]:
    setuid, plain, script = place / "setuid", place / "plain", place / "script"
    shutil.copy("/bin/true", setuid)
    setuid.chmod(0o4755)
    plain.write_text("no program\n")
    script.write_text("#!/nowhere/sh\n")
    script.chmod(0o755)
    return [
        ([], "no program is named"),
        ([""], "no program is named"),
        (["no-such-program"], "there is no such program; check the name"),
        (["./no-such-program"], "No such file or directory"),
        ([str(place)], "this is a directory"),
        ([str(plain)], "it may not be executed; chmod [+]x"),
        ([str(setuid)], "gains rights"),
        (["ls", "a\0b"], "zero byte"),
    ]


def test_what_cannot_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", {"ls": "/bin/ls", "valgrind": "/bin/true"}.get)
    out = tmp_path / "out"
    out.mkdir()
    for words, said in refusals(tmp_path):
        with pytest.raises(ConfigError, match=said):
            record(words, str(out / "a.arrow"))
    for name, said in (
        ("a.npy", "no name of a recording"),
        ("a.arrow.xz", "no name of a recording"),
        ("none/a.arrow", "there is no directory"),
    ):
        with pytest.raises(FastmmuError, match=said):
            record(["ls"], str(out / name))
    assert list(out.iterdir()) == []


def test_without_valgrind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "apt-get").write_text("")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="Valgrind, which is not installed: apt install valgrind"):
        valgrind.find()
    assert main(["record", "-o", str(tmp_path / "a.arrow"), "--", "/bin/true"]) == 2
    assert "apt install valgrind" in capfd.readouterr().err


@needs_valgrind
def test_what_valgrind_cannot_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(Path("/bin/true").read_bytes()[:400])
    cut.chmod(0o755)
    for children in (False, True):
        with pytest.raises(ConfigError, match=r"could not run it .*its message is above"):
            record([str(cut)], str(tmp_path / "a.arrow"), children=children)
        assert "cannot execute" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]
