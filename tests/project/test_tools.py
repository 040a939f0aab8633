"""`make` says what a machine lacks, and the line that installs it: tools/check_tools.sh on made-up machines."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "check_tools.sh"


def machine(place: Path, **programs: str) -> dict[str, str]:
    """Environment of a machine that has sh, readlink and these programs (shell scripts)."""
    for name in ("sh", "readlink"):
        (place / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    for name, script in programs.items():
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)
    return {"PATH": str(place), "CC": "cc"}


def answer(environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)
    assert done.stdout == ""
    return done.returncode, re.sub(r"\bpython3\.\d+-", "python3-", done.stderr)  # of an interpreter beside Debian's own


def python(without: str = "nothing at all") -> str:
    return f'case "$*" in *"{without}"*) exit 1;; esac\nexec {sys.executable} "$@"'


def test_a_whole_machine_passes_in_silence(tmp_path: Path) -> None:
    assert answer(machine(tmp_path, python3=python(), cc="exit 0")) == (0, "")


@pytest.mark.parametrize(
    ("programs", "what", "packages"),
    [
        ({}, "Python 3.11 or newer", "python3 python3-venv python3-dev gcc libc6-dev"),
        ({"python3": "exit 127", "cc": ""}, "Python 3.11 or newer", "python3 python3-venv python3-dev"),
        ({"python3": python("ensurepip"), "cc": ""}, "venv module", "python3-venv"),
        ({"python3": python("Python.h"), "cc": ""}, "Python.h", "python3-dev"),
        ({"python3": python()}, "C compiler", "gcc libc6-dev"),
        ({"python3": python(), "cc": "exit 1"}, "stdlib.h", "libc6-dev"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, programs: dict[str, str], what: str, packages: str) -> None:
    code, message = answer(machine(tmp_path, **programs))
    assert code == 1
    assert what in message
    assert message.endswith(f"    sudo apt-get install {packages}\n")


def test_an_old_python_is_named_and_nothing_is_to_be_installed(tmp_path: Path) -> None:
    code, message = answer(machine(tmp_path, python3=python("version_info >= "), cc=""))
    assert code == 1
    assert "3.11 or newer is needed" in message
    assert "apt-get" not in message


def test_the_compiler_is_the_one_that_the_build_takes(tmp_path: Path) -> None:
    environment = machine(tmp_path, python3=python(), cc="exit 0")
    code, message = answer({**environment, "CC": "other-cc -m64"})
    assert code == 1
    assert "a C compiler (other-cc)" in message
