"""Two revisions against each other: both built in directories of their own, and benches run on either in turns.

    python -m bench.compare BASE [-k EXPRESSION] [--turns N] [FILE ...]

BASE is a revision of git; the other side is the work tree as it is; the benches are this tree's. A file of benches runs
on one, then on the other, so that neighbouring seconds are compared; who begins changes from turn to turn. Of each
bench: the ratio now over BASE, of the quickest rounds of a turn: the median of the turns, the smallest and the largest.
Below 1: it is faster now.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.instructions import BUILT, ROOT, build_package
from bench.race import ALONE

BUILDS = ROOT / "build" / "compare"
TURNS = 5


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def built(revision: str) -> Path:
    """The package of a revision, built; again only if it was not."""
    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}")
    place = BUILDS / commit[:12]
    if not (place / "done").exists():
        source = place / "source"
        source.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
        build_package(place / "lib", source)
        (place / "done").touch()
    return place / "lib"


def run(package: Path, file: Path, expression: str, where: Path) -> dict[str, float]:
    """Nanoseconds an item of each bench of a file, on a built package; a bench that fails there is left out.

    Of its rounds the quickest: others may use the machine, too.
    """
    out = where / "out.json"
    out.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": f"{package}:{ROOT}", "PYTHONHASHSEED": "0", ALONE: "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--bench-scale", "usual", str(file)]
    command += ["-k", expression, f"--benchmark-json={out}"]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if not out.exists() or not out.stat().st_size:
        return {}
    found = json.loads(out.read_text())["benchmarks"]
    return {bench["name"]: bench["stats"]["min"] / bench["extra_info"]["items"] * 1e9 for bench in found}


def ratios(turns: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, list[float]]:
    """Of each bench that both ran: now over base, a number a turn."""
    found: dict[str, list[float]] = {}
    for base, now in turns:
        for name in now.keys() & base.keys():
            found.setdefault(name, []).append(now[name] / base[name])
    return found


def report(found: dict[str, list[float]], only: set[str]) -> str:
    lines = ["| work | now / base | smallest | largest |", "|---|---:|---:|---:|"]
    for name in sorted(found):
        each = found[name]
        lines.append(f"| {name} | {statistics.median(each):.3f} | {min(each):.3f} | {max(each):.3f} |")
    lines += [f"| {name} | base cannot |  |  |" for name in sorted(only)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", metavar="BASE", help="a revision of git")
    parser.add_argument("files", nargs="*", type=Path, help="files of benches; all but test_import.py")
    parser.add_argument("-k", dest="expression", default="", help="benches, as pytest's -k")
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    files = options.files or sorted(path for path in (ROOT / "bench").glob("test_*.py") if path.stem != "test_import")
    base, now = built(options.base), BUILT
    build_package(now)
    found: dict[str, list[float]] = {}
    only: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="fastmmu-bench-") as directory:
        where = Path(directory)
        for file in files:
            turns = []
            for turn in range(options.turns):
                sides = [(0, base), (1, now)] if turn % 2 == 0 else [(1, now), (0, base)]
                ran = {side: run(package, file, options.expression, where) for side, package in sides}
                turns.append((ran[0], ran[1]))
            found |= {f"{file.stem.removeprefix('test_')}: {k}": v for k, v in ratios(turns).items()}
            only |= {f"{file.stem.removeprefix('test_')}: {k}" for k in turns[-1][1].keys() - turns[-1][0].keys()}
            print(f"{file.name}: {options.turns} turns", file=sys.stderr, flush=True)
    if not found and not only:
        sys.exit("no bench ran; give another -k, or see what pytest says of bench/")
    print(report(found, only))


if __name__ == "__main__":
    main()
