"""The command line as a program: errors, pipes, a terminal, Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

import fastmmu
from fastmmu.cli import main

PROGRAM = [sys.executable, "-m", "fastmmu"]


def error(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line that a command line which fails writes."""
    try:
        code = main([str(word) for word in argv])
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("fastmmu: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("fastmmu: error: ").strip()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    np.save(tmp_path / "t.npy", np.arange(0, 1 << 20, 512, dtype=np.uint64))
    return tmp_path / "t.npy"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("", "required: COMMAND; see fastmmu --help"),
        ("compute", "invalid choice: 'compute'"),
        ("compare --fast", "unrecognized arguments: --fast; see fastmmu compare --help"),
        ("compare /no/such.npy", "/no/such.npy: cannot be read: No such file or directory"),
        ("compare {dir}", "this is a directory; name a trace file in it"),
        ("compare {trace} --pages 8k", "'8k' is none of 4k, 2m, thp; see fastmmu compare --help"),
        ("compare {trace} --schemes native,xen", "'xen' is none of native, shadow"),
        ("compare {trace} --schemes ,", "name at least one of native"),
        ("compare {trace} --limit 0", "'0' is no number >= 1; write 50000, 50_000 or 50k"),
        ("compare {trace} --limit 1e6", "'1e6' is no number >= 1"),
        ("compare {trace} --memory huge", "'huge' is no size"),
        ("run zstd --format npy", "not a .npy file"),
        ("compare {trace} --memory 1k", "outside 64M..32T"),
        ("compare {trace} --tlb i486", "i486"),
        ("compare {trace} --l1d 7/2/1", "7/2/1"),
        ("compare {trace} --l1d -64/4", "-64/4"),
        ("compare {trace} --l1d=-64/4", "-64/4"),
        ("compare {trace} --thp-threshold 600", "thp_threshold=600: Expected"),
        ("run {trace} --exit-every 99999999999999999999999", "exit_every=99999999999999999999999"),
        ("migrate {system}", "mm.rec.xz: this is a system trace, of a whole machine"),
        ("migrate {trace} --bandwidth 1.25", "raise bandwidth"),
        ("migrate {trace} --bandwidth 1e5", "round 1, of"),
        ("migrate {trace} --most-cycles 1e6", "more than most_cycles=1e+06; raise bandwidth"),
        ("host {trace} --cpus 65536", "a host has 1..4096 physical CPUs"),
        ("replay {system} --schemes --mmu ept", "leave out --mmu"),
        ("migrate {trace} --ghz 1e300", "lower ghz=1e+300"),
        ("migrate {trace} --bandwidth nan", "'nan' is no number above 0"),
        ("migrate {trace} --methods qemu", "'qemu' is none of write-protect"),
        ("migrate {trace} --generation i486", "no processor 'i486'"),
        ("migrate {trace} --plot r.gif", "a picture is one of png, svg, pdf"),
        ("migrate {trace} --plot /no/such/r.png", "there is no directory /no/such"),
        ("overcommit {system}", "`fastmmu replay` runs it"),
        ("overcommit {trace} --plot r.gif", "a picture is one of png, svg, pdf"),
        ("overcommit {trace} --host-memory 101%", "'101%' is no share; write one above 0, at most 1, as 0.5 or 50%"),
        ("overcommit {trace} --host-memory 50", "'50' is no share"),
        ("run {trace} --host-pages 16", "'16' is none of 4k, 2m, untouched; pages of its own that the host touches"),
        ("run {trace} --host-pages 1g", "'1g' is none of 4k, 2m, untouched"),
        ("run {trace} --exit-pages 4K!", "'4K!' is no number"),
        ("run {trace} --memory 1.5G", "'1.5G' is no size; write bytes, or a whole number with k, m, g or t"),
        ("run {trace} --pages 4m", "'4m' is none of 4k, 2m, thp"),
        ("tpr {trace} --plot r.gif", "a picture is one of png, svg, pdf"),
        ("tlb-curve {system}", "this is a system trace"),
        ("replay {trace}", "replay takes system traces"),
        ("replay {system} --memory 64M", "raise Config(memory=)"),
        ("boot --mmu ept", "unrecognized arguments: --mmu ept; see fastmmu boot --help"),
        ("compare {trace} --costs /no/such.toml", "/no/such.toml: No such file or directory"),
        ("compare {trace} --costs {trace}", "no text in UTF-8"),
        ("compare {trace} --generation i486", "no processor 'i486'; there are prescott"),
        ("compare {trace} --json /no/such/r.json", "/no/such/r.json: there is no directory /no/such; make it first"),
        ("compare {trace} --csv {dir}", "is a directory; name a file in it"),
        ("compare {trace} --json - --csv -", "name a file for one"),
        ("compare {trace} --parquet -", "a Parquet file is binary; name a file"),
        ("walk --va 12345678901234567", "no hexadecimal number of up to 64 bits"),
        ("walk --va main", "no hexadecimal number"),
        ("walk --pdptes 1,2", "'1,2' is 2 values; give four"),
        ("walk --eptp 3", "eptp=0x3: memory type 3"),
        ("walk --cr4 0", "long mode needs CR4.PAE"),
        ("walk --maxphyaddr 99", "maxphyaddr=99 is outside 32..52"),
        ("walk --eptp 90000001e", "eptp=0x90000001e: its table lies outside memory"),
        ("walk --json /no/such/w.json", "there is no directory /no/such; make it first"),
        ("walk --memory /no/such --va 0", "/no/such: no such file; name a recorded guest"),
        ("walk --memory {trace}", "--memory needs --va too"),
        ("walk --memory {raw} --va 0", "is a raw image, which needs --cr3 too"),
        ("walk --memory {raw} --va 0 --cr3 7000000", "cr3=0x7000000: its table lies outside memory"),
        ("walk --memory {dir} --va 0 --cr3 0", "there is no meta.json: this is no recorded guest"),
        ("walk --memory {empty} --va 0 --cr3 0", "holds 0 bytes"),
        (
            "walk --memory {pipe} --va 0 --cr3 0",
            "pipe: this is a pipe, and memory is mapped; save it",
        ),
        ("maps {pipe} --cr3 0", "this is a pipe"),
        ("maps /dev/null --cr3 0", "this is a device"),
        ("maps {guest}", "meta.json: this is a pipe"),
        ("run {pipe}", "this is no regular file"),
        ("maps", "required: MEMORY; see fastmmu maps --help"),
        ("maps {dir}", "there is no meta.json: this is no recorded guest"),
        ("maps {raw}", "is a raw image, which needs --cr3 too"),
        ("maps /no/such.raw --cr3 0", "/no/such.raw: no such file; name a recorded guest"),
        ("maps {trace} --cr3 0 --start -1000", "'-1000' is no hexadecimal number"),
        ("maps {trace} --cr3 0 --limit many", "'many' is no number >= 0"),
        ("maps {raw} --cr3 0 --eptp 7", "eptp=0x7"),
        ("maps {raw} --cr3 7000000", "cr3=0x7000000: its table lies outside memory"),
        ("maps {trace} --cr3 0 --csv {dir}", "is a directory; name a file in it"),
        ("maps {trace} --cr3 0 --parquet -", "a Parquet file is binary; name a file"),
        ("walk --memory {odd} --va 0 --cr3 0", "no multiple of 8"),
        ("trace info {empty}", "the file is empty"),
        ("trace convert {trace} {dir}/out.txt", "cannot write this as a trace"),
        ("trace convert {trace} {trace} {dir}/out.npy", "with --switch-every N they become one"),
        ("trace convert {trace}", "required: OUT"),
    ],
)
def test_every_error_is_one_line(
    capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path, argv: str, says: str
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "odd").write_bytes(b"123")
    (tmp_path / "guest").mkdir()
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "guest" / "meta.json")
    system = Path(__file__).parents[1] / "data/systems/mm.rec.xz"
    made = {name: tmp_path / name for name in ("empty", "odd", "pipe", "guest")}
    (tmp_path / "raw").write_bytes(bytes(1 << 16))
    places = {"trace": trace, "dir": tmp_path, "system": system, "raw": tmp_path / "raw", **made}
    before = sorted(tmp_path.iterdir())
    assert says in error(capsys, *argv.format(**places).split())
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("argv", ["", "compare", "run", "walk", "trace", "trace info", "trace convert"])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], argv: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*argv.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: fastmmu {argv}".rstrip())
    assert argv == "trace" or "examples:\n  fastmmu " in out


def test_examples_of_the_help_are_command_lines_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    from fastmmu.cli.main import parser

    lines = []
    for argv in ("", "compare", "run", "walk", "trace info", "trace convert"):
        with pytest.raises(SystemExit):
            main([*argv.split(), "--help"])
        out = capsys.readouterr().out
        examples = out.partition("examples:")[2].partition("\n\n")[0]
        lines += re.findall(r"^  fastmmu (.*?)(?:   .*)?$", examples, re.M)
    assert len(lines) > 20
    for line in lines:
        parser().parse_args(line.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fastmmu {fastmmu.__version__}\n"


# ---- as a process -------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen([*PROGRAM, "walk"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_ascii_where_the_output_has_no_more() -> None:
    done = subprocess.run(
        [*PROGRAM, "walk"], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True
    )
    assert done.stdout.isascii()
    assert b"5 100001008" in done.stdout
    assert done.stderr == b""


def take_terminal() -> None:
    """The terminal is the command's, and Ctrl-C not ignored, as it is for what a script runs in the background."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def on_terminal(argv: list[str], *, press: bytes | None = None, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command on a terminal of its own; Ctrl-C once `press` has been seen. Exit code and all output."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *argv], stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        preexec_fn=take_terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **(env or {})},
    )  # fmt: skip
    os.close(follower)
    out = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([leader], [], [], 0.2)[0]:
            continue
        try:
            data = os.read(leader, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        out += data
        if press is not None and press in out:
            os.write(leader, b"\x03")
            press = None
    os.close(leader)
    return process.wait(30), out.decode().replace("\r\n", "\n")


@pytest.fixture
def long_trace(tmp_path: Path) -> Path:
    np.save(tmp_path / "long.npy", np.random.default_rng(1).integers(0, 1 << 29, 4_000_000, dtype=np.uint64))
    return tmp_path / "long.npy"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_on_a_terminal(long_trace: Path, jobs: str) -> None:
    pytest.importorskip("rich")
    code, out = on_terminal(["compare", str(long_trace), "--jobs", jobs], press=b"[2/5]")
    assert code == 130
    assert "━" in out  # a bar
    table = out.rpartition("\x1b[2K")[2]  # the bar is gone from where the table begins
    table = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", table)
    assert re.search(r"^native +4.00M", table, re.M)
    assert "Not run: " in table
    assert "Traceback" not in out


def test_progress_without_rich(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    code, out = on_terminal(["run", str(trace)], env={"PYTHONPATH": path, "NO_COLOR": "1"})
    assert code == 0
    assert "[1/1] t: native  100%  2048 events" in out
    assert "\x1b[" not in out  # NO_COLOR, and no other escapes without rich
    assert re.search(r"^  accesses +2,048$", out, re.M)


def test_quiet_on_a_terminal(trace: Path) -> None:
    _, out = on_terminal(["run", str(trace), "--quiet"])
    assert "[1/1]" not in out
    assert "━" not in out
