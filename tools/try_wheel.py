"""Installs a wheel in a new environment of each interpreter and runs tests there: tools/try_wheel.py WHEEL [TEST...]

The interpreters are those that FASTMMU_PYTHONS names (commands or paths, with spaces between), else python3.11 and
later as far as they are found. The environments get the wheel with the extra zstd, which some traces need, and the
group "pytest" of pyproject.toml.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ["python3.11", "python3.12", "python3.13", "python3.14", "python3.15"]
TESTS = [f"tests/{room}" for room in ("arch", "tlb", "paging", "mmu", "machine", "conformance", "trace", "image")]
VERSION = "import platform; print(platform.python_implementation(), platform.python_version())"
INSTALLED = "import fastmmu, sys; assert fastmmu.__file__.startswith(sys.prefix), fastmmu.__file__"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    parts = [str(part) for part in command]
    try:
        return subprocess.run(parts, cwd=ROOT, env=clean, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return subprocess.CompletedProcess(parts, 127, error.strerror or str(error))


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def attempt(python: str, wheel: Path, tests: list[str], place: Path) -> str:
    """What the tests came to; SystemExit where they, or the installation, failed."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", place / "bin" / "python"]
    jobs = os.environ.get("FASTMMU_JOBS") or str(os.cpu_count())
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--numprocesses", jobs]
    group = f"{ROOT / 'pyproject.toml'}:pytest"
    done = None
    for command in (
        [python, "-m", "venv", "--without-pip", place],
        [*pip, "install", "--quiet", "--only-binary", ":all:", f"{wheel}[zstd]", "--group", group],
        [place / "bin" / "python", "-P", "-c", INSTALLED],
        [place / "bin" / "python", *pytest, *tests],
    ):
        done = run(*command)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout[-4000:]}")
    assert done is not None
    return last_line(done.stdout)


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        raise SystemExit(f"{__doc__}\nno such wheel: {' '.join(sys.argv[1:2]) or '(none named)'}")
    wheel, tests = Path(sys.argv[1]).resolve(), sys.argv[2:] or TESTS
    tried = 0
    for python in os.environ.get("FASTMMU_PYTHONS", "").split() or PYTHONS:
        version = run(python, "-c", VERSION)
        if version.returncode:
            print(f"{python}: skipped: {last_line(version.stdout)}", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="fastmmu-wheel-") as place:
            print(f"{version.stdout.strip()}: {attempt(python, wheel, tests, Path(place))}", flush=True)
        tried += 1
    if not tried:
        raise SystemExit("no interpreter found: name some in FASTMMU_PYTHONS")


if __name__ == "__main__":
    main()
