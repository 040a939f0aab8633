"""`python -m tests.files.fuzz [--inputs N] [--only NAME]`: fuzzes the readers in turn until each had its part of N."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from tests.files.fuzz import KEPT, PLACE, SECONDS
from tests.files.fuzz.readers import READERS

_SLICE = 40_000  # inputs of one process


def done(name: str, place: Path) -> int:
    """Inputs of a reader so far."""
    try:
        return int((place / name / "inputs").read_text())
    except FileNotFoundError:
        return 0


def begin(name: str, home: str) -> None:
    """Write the first inputs of a reader, and those of the repository."""
    corpus = Path(home) / "corpus"
    for number, seed in enumerate(READERS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    for path in (KEPT / name).iterdir() if (KEPT / name).is_dir() else ():
        shutil.copy(path, corpus)


def fuzz(name: str, runs: int, place: Path) -> str:
    """So many inputs more; what went wrong, "" if nothing did. Inputs that were known are not counted."""
    home = place / name
    for part in ("corpus", "wrong"):
        (home / part).mkdir(parents=True, exist_ok=True)
    if not any((home / "corpus").iterdir()):
        # In a process of its own: the fuzzer's begins with this one's peak of memory as its own (getrusage(2), execve).
        begun = [sys.executable, "-c", f"from tests.files.fuzz.__main__ import begin; begin({name!r}, {str(home)!r})"]
        subprocess.run(begun, check=True)
    known = len(list((home / "corpus").iterdir()))
    (home / "count").write_bytes(bytes(8))
    names = [str(home / part) for part in ("count", "corpus", "wrong")]
    with (home / "log").open("wb") as log:
        command = [sys.executable, "-m", "tests.files.fuzz.one", name, str(runs + known), *names]
        code = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL).returncode
    (count,) = struct.unpack("<Q", (home / "count").read_bytes())
    (home / "inputs").write_text(str(done(name, place) + max(0, count - known)))
    if code == 0:
        return ""
    lines = (home / "log").read_text("utf-8", "replace").splitlines()
    said = [line for line in lines if "ERROR: " in line or "Error" in line or "test unit written" in line]
    return "; ".join(line.strip() for line in said[-3:]) or f"exit code {code}, see {home / 'log'}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.files.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=2_000_000, help="of all readers together (default: %(default)s)")
    parser.add_argument("--only", default="", help="readers whose name contains this")
    parser.add_argument("--place", type=Path, default=PLACE, help="where inputs and counts are kept (build/fuzz)")
    options = parser.parse_args(argv)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install --group fuzz", file=sys.stderr)
        return 2
    names = [name for name in READERS if options.only in name]
    wrong: dict[str, str] = {}
    each = -(-options.inputs // max(1, len(names)))
    while left := [name for name in names if done(name, options.place) < each and name not in wrong]:
        for name in left:
            said = fuzz(name, min(_SLICE, each - done(name, options.place)), options.place)
            print(
                f"{name}: {done(name, options.place):,} of {each:,} inputs{f'; WRONG: {said}' if said else ''}",
                flush=True,
            )
            if said:
                wrong[name] = said
    for name in names:
        kept = len(list((options.place / name / "corpus").iterdir())) if (options.place / name).is_dir() else 0
        print(f"  {'WRONG' if name in wrong else 'right'}  {name}: {done(name, options.place):,} inputs, {kept} kept")
    total = sum(done(name, options.place) for name in names)
    print(f"{total:,} inputs of {len(names)} readers, {SECONDS} s each at most; {len(wrong)} went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
