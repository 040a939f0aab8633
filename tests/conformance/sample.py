"""Draw the small sample of each vector set that the project carries: `python -m tests.conformance.sample DIRECTORY`.

The sample is stratified: vectors that ended alike (outcome, error code or qualification, access, deviation tags) form
a class, and the classes take turns, rarest ending first within a turn, until the set has its share. No chance in it.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections import defaultdict
from collections.abc import Hashable
from pathlib import Path

from . import vmx
from .tlbs import sets as tlb_sets
from .vectors import Vector, outcome_of, read, sample_directory, set_name, sets


def ending(v: Vector) -> Hashable:
    """What makes two vectors of a set alike."""
    out = outcome_of(v)
    return (
        out.get("k"),
        out.get("valid"),
        out.get("ec"),
        out.get("q") if "acc" in v else None,
        out.get("gps"),
        out.get("eps"),
        v.get("acc"),
        (v.get("op"), out.get("reason"), out.get("when"), out.get("pend")),
        bool(out.get("ch")),
        tuple(v.get("dev", ())),
        v.get("op"),
        v.get("must_be_fresh"),
        *((int(str(v["type"]), 16), v["pcide"]) if "type" in v and int(str(v["type"]), 16) < 4 else ()),
    )


def sample(vectors: list[Vector], count: int) -> list[Vector]:
    classes: dict[Hashable, list[int]] = defaultdict(list)
    for number, v in enumerate(vectors):
        classes[ending(v)].append(number)
    queues = sorted(classes.values(), key=len)
    chosen: list[int] = []
    for turn in range(max(map(len, queues), default=0)):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
        if len(chosen) >= count:
            break
    return [vectors[number] for number in sorted(chosen[:count])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="the full sets")
    parser.add_argument("--count", type=int, default=250, help="vectors a set")
    parser.add_argument("--only", default="", help="sets whose name begins with this")
    options = parser.parse_args()
    for path in [*sets(options.directory), *tlb_sets(options.directory), *vmx.sets(options.directory)]:
        if not path.name.startswith(options.only):
            continue
        lines = "".join(json.dumps(v, separators=(",", ":")) + "\n" for v in sample(list(read(path)), options.count))
        target = sample_directory() / f"{set_name(path)}.jsonl.xz"
        target.write_bytes(lzma.compress(lines.encode(), preset=9 | lzma.PRESET_EXTREME))
        print(f"{target.name}: {lines.count(chr(10))} vectors, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
