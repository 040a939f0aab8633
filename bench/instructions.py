"""The gate that does not depend on how busy a machine is: instructions an item, counted by callgrind.

    python -m bench.instructions [--update]

Counts of every work of `counted.py` are compared with those committed in `instructions.json`; each must be within 2 %,
in both directions, so that the file stays true. `--update` writes it. Counts belong to a compiler, a Python, a Cython
and a NumPy: with others, without valgrind, or where NumPy and Python alone take another number of instructions (they
choose code by the processor), nothing is compared, and a line says why.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "bench" / "instructions.json"
BUILT = ROOT / "build" / "editable"
"""Kernels with the flags of `setup.py`: where an install by `make` has them already."""

TOLERANCE = 0.02

OTHERS, ALIKE = ("NumPy alone", "Python alone"), 0.005
"""Works that are not ours, and how near they are to what was counted before where the machine is the same."""

WHAT_TO_DO = """bench-gate: if more were not meant, find the change that made them (make bench-compare BASE=revision)
and mend it; if fewer, or more and meant: make bench-gate UPDATE=1, and commit instructions.json with the reason"""

STEADY = {
    "PYTHONHASHSEED": "0",
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072:glibc.cpu.x86_rep_movsb_threshold=1073741824"
    ":glibc.cpu.x86_rep_stosb_threshold=1073741824:glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM",
}
"""What else moves counts: hashes; whether memory is fresh, which the C library learns from what was freed; and how it
clears and copies memory, which depends on the processor (and callgrind counts each byte of `rep stosb`)."""


def made_with() -> dict[str, str]:
    """What counts depend on."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    said = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True).stdout
    return {
        "compiler": said.splitlines()[0],
        "python": platform.python_version(),
        "cython": importlib.metadata.version("cython"),
        "numpy": importlib.metadata.version("numpy"),
        "machine": platform.machine(),
    }


def why_not() -> str:
    """Why nothing can be counted here; "" where it can."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if not any(Path(place, "valgrind", "callgrind.h").exists() for place in ("/usr/include", "/usr/local/include")):
        return "valgrind/callgrind.h is not installed"
    return ""


def build_package(where: Path, source: Path = ROOT) -> None:
    """Kernels and modules of a checkout as an install makes them, whatever the environment says of flags."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FASTMMU_")}
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(where), "--build-temp", str(where)]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{source} cannot be built:\n{done.stdout}{done.stderr}")


def build_counter(where: Path) -> Path:
    library, source = where / "counter.so", Path(__file__).with_name("callgrind.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def counted() -> dict[str, float]:
    """Instructions an item of each work."""
    with tempfile.TemporaryDirectory(prefix="fastmmu-gate-") as directory:
        where = Path(directory)
        build_package(BUILT)
        counter = build_counter(where)
        environment = {**os.environ, **STEADY, "PYTHONPATH": f"{BUILT}:{ROOT}", "TMPDIR": directory}
        options = ["--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={where}/out"]
        command = ["valgrind", "-q", *options, sys.executable, "-m", "bench.counted", str(counter)]
        done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"bench.counted failed under valgrind:\n{done.stdout}{done.stderr}")
        items = dict(line.split("\t") for line in done.stdout.splitlines())
        found = dict(count for path in where.glob("out*") if (count := count_of(path.read_text())))
    return {name: round(found[name] / int(n), 2) for name, n in items.items()}


def count_of(dump: str) -> tuple[str, int] | None:
    """(name, instructions) of a dump of callgrind; None of one that the program did not ask for."""
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", dump, re.MULTILINE)
    total = re.search(r"^(?:summary|totals): (\d+)", dump, re.MULTILINE)
    return (name[1], int(total[1])) if name and total else None


def differences(committed: dict[str, float], found: dict[str, float]) -> list[str]:
    """What is not within the tolerance, a line each."""
    lines = []
    for name in sorted(committed.keys() | found.keys()):
        if name not in found or name not in committed:
            lines.append(f"{name}: {'not counted any more' if name in committed else 'not in the file'}")
        elif abs(found[name] - committed[name]) > TOLERANCE * committed[name]:
            change = found[name] / committed[name] - 1
            lines.append(f"{name}: {committed[name]:,.2f} instructions an item, now {found[name]:,.2f} ({change:+.1%})")
    return lines


def elsewhere(committed: dict[str, float], found: dict[str, float]) -> str:
    """What takes another number of instructions here though it is not ours; "" where nothing does."""
    both = ((name, committed[name], found[name]) for name in OTHERS if name in committed and name in found)
    return "; ".join(
        f"{name} takes {now:,.1f} instructions an item here, {then:,.1f} where {COMMITTED.name} was made"
        for name, then, now in both
        if abs(now - then) > ALIKE * then
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help=f"write {COMMITTED.name}")
    update = parser.parse_args().update
    if why := why_not():
        print(f"bench-gate: skipped: {why}")
        return
    here = made_with()
    committed: dict[str, Any] = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {"made_with": {}}
    if not update and committed["made_with"] != here:
        print(f"bench-gate: skipped: {COMMITTED.name} was made with {committed['made_with']}, this is {here}")
        return
    found = counted()
    if update:
        COMMITTED.write_text(json.dumps({"made_with": here, "instructions_per_item": found}, indent=1) + "\n")
        print(f"bench-gate: wrote {len(found)} counts")
        return
    if why := elsewhere(committed["instructions_per_item"], found):
        print(f"bench-gate: skipped: {why}")
        return
    lines = differences(committed["instructions_per_item"], found)
    if lines:
        sys.exit("\n".join([*lines, WHAT_TO_DO]))
    print(f"bench-gate: {len(found)} counts of instructions are within {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
