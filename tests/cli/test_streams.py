"""Standard output and error that are closed, full or have no reader; names that no terminal can show."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastmmu import Config, simulate
from fastmmu.cli import main
from fastmmu.cli.commands import commands
from fastmmu.report import save
from tests.support.signalled import caught, run, signals_as_usual

DATA = Path(__file__).parents[1] / "data"
TRUE = DATA / "true.lackey"
SYSTEM = DATA / "systems/mm.rec.xz"
LINES = {
    "compare": f"compare {TRUE} --schemes native",
    "run": f"run {TRUE} --json -",
    "host": f"host {TRUE}",
    "tlb-curve": f"tlb-curve {TRUE} --csv -",
    "vpid": f"vpid {TRUE} --rates 1",
    "shootdown": f"shootdown {TRUE} --vcpus 2 --methods apicv",
    "tpr": f"tpr {TRUE} --ways trap",
    "migrate": f"migrate {TRUE} --methods pml --memory 128M --rounds 1",
    "overcommit": f"overcommit {TRUE} --schemes ept --host-memory 50% --memory 128M",
    "boot": "boot --schemes native",
    "replay": f"replay {SYSTEM} --limit 1000",
    "walk": "walk",
    "roots": f"roots {DATA / 'guests/pae_user'} --csv -",
    "maps": f"maps {DATA / 'guests/pae_user'} --csv -",
    "kvm-log": f"kvm-log {DATA / 'kvm_logs/perf.txt'} --policies 2m",
    "diff": "diff {csv} {csv}",
    "report": "report {results} -o {results}.html",
    "sweep": "sweep {study} --executor threads:1",
    "study": "study two-dimensional-walk",
    "trace": f"trace info {TRUE}",
    "--help": "--help",
    "--version": "--version",
}


def shell(argv: str, redirection: str, unbuffered: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m fastmmu {argv} {redirection}', sys.executable], capture_output=True, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_every_command_stands_here() -> None:
    """But `record`, which leaves standard output to the program that it runs."""
    assert {command.name for command in commands()} - {"record"} == {name for name in LINES if not name.startswith("-")}


@pytest.mark.parametrize("name", LINES)
def test_standard_output_that_cannot_be_written_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("trace,accesses\nt,1\n")
    save([simulate(np.arange(9), Config())], tmp_path / "r.json")
    (tmp_path / "s.toml").write_text(f'[traces]\na = "{TRUE}"\n')
    line = LINES[name].format(csv=tmp_path / "r.csv", results=tmp_path / "r.json", study=tmp_path / "s.toml")
    full = "fastmmu: error: standard output: No space left on device\n"
    closed = "fastmmu: error: standard output is closed; for no output at all write >/dev/null\n"
    for unbuffered in ("", "1"):
        assert shell(line, ">/dev/full", unbuffered) == (2, "", full)
    assert shell(line, ">&-") == (2, "", closed)
    assert shell(line, "</dev/null >&0") == (2, "", "fastmmu: error: standard output: Bad file descriptor\n")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fastmmu", *line.split()], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_standard_error_that_cannot_be_written_to(redirection: str) -> None:
    assert shell("walk --va main", redirection)[:2] == (2, "")
    assert shell("walk", redirection)[0] == 0
    assert shell("walk", f">&- {redirection}")[:2] == (2, "")
    assert shell("walk --json /no/such/file", redirection)[:2] == (2, "")


def test_files_are_written_though_nobody_reads_the_table(tmp_path: Path) -> None:
    for unbuffered in ("", "1"):
        for name in ("compare", "host", "vpid", "overcommit", "boot"):
            assert shell(f"{LINES[name]} --csv {tmp_path}/r.csv", ">/dev/full", unbuffered)[0] == 2
            assert list(csv.DictReader((tmp_path / "r.csv").open()))
            (tmp_path / "r.csv").unlink()


def test_an_error_does_not_lose_what_was_finished_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second trace is malformed: the first is in table and files. One file cannot be written, the others are."""
    (tmp_path / "bad.lackey").write_text(TRUE.read_text()[:2000] + "nonsense\n")
    traces, files = [str(TRUE), str(tmp_path / "bad.lackey")], ["--csv", str(tmp_path / "r.csv")]
    for line in (["compare", "--schemes", "native,ept"], ["vpid", "--rates", "1"], ["tlb-curve"]):
        assert main([*line, *traces, *files]) == 2
        out, err = capsys.readouterr()
        assert "true" in out
        assert "bad.lackey, line" in err
        assert {row["trace"] for row in csv.DictReader((tmp_path / "r.csv").open())} == {"true"}
        (tmp_path / "r.csv").unlink()
    assert main(["vpid", str(TRUE), "--rates", "1", "--json", "/dev/full", *files]) == 2
    assert capsys.readouterr().err == "fastmmu: error: /dev/full: No space left on device\n"
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 2


def test_blanks_and_characters_of_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shown in (("a  b.npy", "a  b.npy"), ("a\nb\x1b[31m.npy", r"a\nb\x1b[31m.npy"), ("é.npy", "é.npy")):
        assert main(["run", str(tmp_path / name)]) == 2
        assert (
            capsys.readouterr().err
            == f"fastmmu: error: {tmp_path}/{shown}: cannot be read: No such file or directory\n"
        )
        assert main(["walk", "--json", str(tmp_path / "no  such" / name)]) == 2
        assert f"{tmp_path}/no  such/{shown}: there is no directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["walk", "--va", "1  2\n"])
    assert r"'1  2\n' is no hexadecimal number" in capsys.readouterr().err.replace("\\\\", "\\")


def test_a_name_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.path.join(os.fsencode(tmp_path), b"\xff\n.npy")
    with open(name, "wb") as file:
        np.save(file, np.arange(100, dtype=np.uint64))
    assert main(["run", os.fsdecode(name), "--csv", str(tmp_path / "r.csv"), "--json", str(tmp_path / "r.json")]) == 0
    assert capsys.readouterr().out.startswith(r"\xff\n, native")
    (row,) = csv.DictReader((tmp_path / "r.csv").open())
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert row["trace"] == result["trace"] == r"\xff\n"


# ---- signals, at moments that are no chance -------------------------------------------------------------------------


def test_a_signal_during_the_imports() -> None:
    """From the moment on that it is handled; before, it is Python's own."""
    for delay in (0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05):
        for number in (signal.SIGINT, signal.SIGTERM):
            ended = run(["tlb-curve", str(TRUE)], number, delay, as_module=True)
            assert (ended.code, ended.out, ended.err) == (128 + number, "", "fastmmu: interrupted\n") or not ended.code


def test_a_signal_while_nobody_reads(tmp_path: Path) -> None:
    """The pipe is full: the program ends, though not all could be written. A second signal ends it at once."""
    np.arange(1 << 19, dtype=np.uint64).tofile(tmp_path / "image")
    for signals in ([signal.SIGTERM], [signal.SIGINT, signal.SIGINT]):
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "fastmmu", "maps", "--csv", "-", str(DATA / "guests/pae_user"), "--faults"],
            stdout=writer, stderr=subprocess.PIPE, preexec_fn=signals_as_usual,
        )  # fmt: skip
        os.close(writer)
        while not caught(process.pid):
            time.sleep(0.001)
        time.sleep(1)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.6)
        assert process.wait(20) in (128 + signals[0], 0)
        process.stderr.close()  # type: ignore[union-attr]
        os.close(reader)


def test_a_signal_that_is_ignored_stays_so() -> None:
    """Of a job that a shell began in the background, or under nohup."""
    line = f'trap "" INT HUP; exec "$0" -m fastmmu compare {TRUE}'
    process = subprocess.Popen(["sh", "-c", line, sys.executable], stdout=subprocess.PIPE, text=True)
    while not caught(process.pid) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "EPT+VPID" in out
