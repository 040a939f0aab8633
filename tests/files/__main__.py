"""`python -m tests.files [FOLDER]`: each file of the folder against its right answer; fails where one is not right."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.files import KINDS, Result, folder


def results(kind: str, place: Path) -> Iterator[Result]:
    """Those of a kind; where no module knows it, its files are not right."""
    name = f"tests.files.{kind}"
    if importlib.util.find_spec(name) is not None:
        yield from importlib.import_module(name).results(place)
        return
    for path in sorted(place.iterdir()):
        if path.name != "expected.json":
            yield Result(path.name, False, "nothing reads this kind of file yet")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.files", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="default: FASTMMU_FILES, else ../shared/files")
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    options = parser.parse_args(argv)
    place = options.folder or folder()
    kinds = [kind for kind in KINDS if options.only in kind and (place / kind / "expected.json").exists()]
    if not kinds:
        print(f"no expected.json in {place}/{{{','.join(KINDS)}}}; FASTMMU_FILES names the folder", file=sys.stderr)
        return 2
    right = total = 0
    for kind in kinds:
        print(f"{kind}:")
        for result in results(kind, place / kind):
            total += 1
            right += result.right
            print(f"  {'right' if result.right else 'WRONG'}  {result.name}: {result.text}", flush=True)
    print(f"{right} of {total} files right")
    return 0 if right == total else 1


if __name__ == "__main__":
    sys.exit(main())
