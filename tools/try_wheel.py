"""Installs a wheel in a new environment of each interpreter and tries it there: tools/try_wheel.py WHEEL [TEST...]

It is used from an empty directory, as whoever installs it does; then tests run, those of the sdist that lies beside it,
unpacked, which so has all that they need. The interpreters are those that FASTMMU_PYTHONS names (commands or paths,
with spaces between), else python3.11 and later as far as they are found. The environments get the wheel with the extras
cli and zstd, which some traces need, and the group "pytest" of pyproject.toml.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ["python3.11", "python3.12", "python3.13", "python3.14", "python3.15"]
TESTS = [f"tests/{room}" for room in ("arch", "tlb", "paging", "mmu", "machine", "conformance", "trace", "image")]
VERSION = "import platform; print(platform.python_implementation(), platform.python_version())"
USED = """
import sys, fastmmu, numpy as np
assert fastmmu.__file__.startswith(sys.prefix), fastmmu.__file__
result = fastmmu.simulate(np.arange(0, 1 << 20, 64, np.uint64), fastmmu.Config(mmu="ept", vpid=True))
assert result.counters["accesses"] == 1 << 14, result.counters
"""
WALKED = "24 references"  # what `fastmmu walk` says of a walk of 4 levels over 4


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    parts = [str(part) for part in command]
    try:
        return subprocess.run(parts, cwd=cwd, env=clean, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return subprocess.CompletedProcess(parts, 127, error.strerror or str(error))


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def sdist_beside(wheel: Path) -> Path | None:
    """The sdist of the same version in the folder of a wheel."""
    name = "-".join(wheel.name.split("-")[:2])
    path = wheel.with_name(f"{name}.tar.gz")
    return path if path.is_file() else None


def unpacked(sdist: Path, place: Path) -> Path:
    """The tree of an sdist."""
    shutil.unpack_archive(sdist, place)
    (tree,) = place.iterdir()
    return tree


def must(*command: str | Path, cwd: Path) -> str:
    """What a command printed; SystemExit, with the end of that, where it failed."""
    done = run(*command, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout[-4000:]}")
    return done.stdout


def attempt(interpreter: str, wheel: Path, tree: Path, tests: list[str], place: Path) -> str:
    """What the tests came to; SystemExit where they, the installation or the use failed."""
    empty, made = place / "empty", place / "venv"
    empty.mkdir()
    python = made / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    jobs = os.environ.get("FASTMMU_JOBS") or str(os.cpu_count())
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--numprocesses", jobs]
    group = f"{tree / 'pyproject.toml'}:pytest"
    must(interpreter, "-m", "venv", "--without-pip", made, cwd=empty)
    must(*pip, "install", "--quiet", "--only-binary", ":all:", f"{wheel}[cli,zstd]", "--group", group, cwd=empty)
    must(python, "-c", USED, cwd=empty)
    version = must(made / "bin" / "fastmmu", "--version", cwd=empty).strip()
    if version != f"fastmmu {wheel.name.split('-')[1]}":
        raise SystemExit(f"{wheel.name}: `fastmmu --version` says {version}")
    if WALKED not in must(made / "bin" / "fastmmu", "walk", cwd=empty):
        raise SystemExit(f"{wheel.name}: `fastmmu walk` does not say {WALKED}")
    return f"{version}: {last_line(must(python, *pytest, *tests, cwd=tree))}"


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        raise SystemExit(f"{__doc__}\nno such wheel: {' '.join(sys.argv[1:2]) or '(none named)'}")
    wheel, tests = Path(sys.argv[1]).resolve(), sys.argv[2:] or TESTS
    sdist = sdist_beside(wheel)
    tried = 0
    for named in os.environ.get("FASTMMU_PYTHONS", "").split() or PYTHONS:
        python = str(Path(named).absolute()) if os.sep in named else named
        version = run(python, "-c", VERSION, cwd=ROOT)
        if version.returncode:
            print(f"{python}: skipped: {last_line(version.stdout)}", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="fastmmu-wheel-") as folder:
            place = Path(folder)
            tree = unpacked(sdist, place / "sdist") if sdist else ROOT
            print(f"{version.stdout.strip()}: {attempt(python, wheel, tree, tests, place)}", flush=True)
        tried += 1
    if not tried:
        raise SystemExit("no interpreter found: name some in FASTMMU_PYTHONS")


if __name__ == "__main__":
    main()
