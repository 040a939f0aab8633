"""Commands that a signal ends at a moment of one's choice, and what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "caught", "run", "signals_as_usual"]

DRIVER = """
import os, sys
from fastmmu.cli.interruption import take
take()
from fastmmu.cli import main, progress
once = progress.UntilInterrupted.__next__
def counted(self):
    item = once(self)
    os.write({log}, b"+")
    return item
progress.UntilInterrupted.__next__ = counted
from fastmmu.cli.main import program
raise SystemExit(program())
"""
"""The program, which notes each step of work that it has finished."""


@dataclass(frozen=True)
class Ended:
    """code: exit status. steps: that were finished. seconds: from the signal, or when it would be taken, to the end."""

    code: int
    steps: int
    seconds: float
    out: str
    err: str


def signals_as_usual() -> None:
    """For a process that is about to run: tests may run in the background, where shells ignore SIGINT."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def caught(pid: int) -> bool:
    """Whether the process handles SIGTERM by now."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    line = next((line for line in text.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def run(argv: list[str], number: int | None, delay: float, *, as_module: bool = False) -> Ended:
    """Run a command line; it gets the signal `delay` seconds after it has begun to handle signals."""
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        how = ["-m", "fastmmu"] if as_module else ["-c", DRIVER.format(log=log.fileno())]
        process = subprocess.Popen(
            [sys.executable, *how, *argv], stdout=out, stderr=err, stdin=subprocess.DEVNULL, pass_fds=[log.fileno()],
            env={**os.environ, "COLUMNS": "120"}, preexec_fn=signals_as_usual,
        )  # fmt: skip
        while process.poll() is None and not caught(process.pid):
            time.sleep(0.0005)
        if number is not None:
            time.sleep(delay)
        began = time.monotonic()
        if number is not None:
            process.send_signal(number)
        code = process.wait(120)
        seconds = time.monotonic() - began
        for file in (log, out, err):
            file.seek(0)
        return Ended(code, len(log.read()), seconds, out.read().decode(), err.read().decode())
