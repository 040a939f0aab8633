"""Memory traces against the number of their events by operation (`expected.json`).

A file is right where it gives these numbers; where what it says of itself asks for an option, with that; and where it
cannot be read as a trace of a program, if it is refused by the name of what it is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastmmu import FastmmuError, read_trace
from fastmmu.ops import Op
from fastmmu.trace.v2p import read_v2p
from tests.files import Result

_NO_TRACE = ("was --trace-mem=yes given",)
_PHYSICAL = ("addresses are physical", "log of QEMU's execlog")  # refused whatever their events are
_AS_NOTED = ("this is plain binary", "a second process")  # where the answer says so
_COUNTS = ("fetch", "read", "write", "modify", "accesses", "faults")


def results(folder: Path) -> Iterator[Result]:
    """One for each file of which something is expected."""
    expected: dict[str, dict[str, Any]] = json.loads((folder / "expected.json").read_text())
    for name, right in sorted(expected.items()):
        yield result(folder / name, right)
    for path in sorted(folder.iterdir()):
        if path.name not in expected and path.is_file() and b"address_mapping_group" in path.read_bytes()[:4096]:
            yield pages(path)


def pages(path: Path) -> Result:
    """A v2p.textproto, which says itself how many pages it has, and bytes."""
    try:
        found = read_v2p(path)
    except FastmmuError as error:
        return Result(path.name, False, f"refused: {error}")
    said = [int(re.findall(rf"{key}: (\d+)", path.read_text())[-1]) for key in ("page_count", "bytes_mapped")]
    got = [len(found), sum(page.nbytes for page in found)]
    return Result(
        path.name, got == said, f"{got[0]} pages, {got[1]} bytes" + (f"; it says {said}" if got != said else "")
    )


def result(path: Path, right: dict[str, Any]) -> Result:
    """What a file comes to."""
    asked = ""
    try:
        found = counts(path)
    except FastmmuError as error:
        said = str(error).replace(f"{path}", "").lstrip(":, ")
        if "--skip-other-lines" not in said:
            return Result(path.name, refusal(said, right), f"refused: {said}")
        asked = " with --skip-other-lines"
        found = counts(path, skip_other_lines=True)
    wanted = {name: right[name] for name in _COUNTS if name in right}
    got = {name: found["accesses" if name == "faults" else name] for name in wanted}
    text = ", ".join(f"{n} {name}" for name, n in got.items())
    return Result(path.name, got == wanted, text + asked + ("" if got == wanted else f"; right: {wanted}"))


def counts(path: Path, **options: Any) -> Counter[str]:
    """Events by operation, and all accesses."""
    found: Counter[str] = Counter()
    for batch in read_trace(path, **options).batches():
        for op in (Op.FETCH, Op.READ, Op.WRITE, Op.MODIFY):
            found[op.name.lower()] += int((batch.op == op).sum())
        found["accesses"] += batch.accesses
    return found


def refusal(said: str, right: dict[str, Any]) -> bool:
    """Whether it is right to refuse a file in these words."""
    known = [_PHYSICAL]
    known += [_AS_NOTED] * ("refuse" in right.get("note", ""))
    known += [_NO_TRACE] * (not any(name in right for name in _COUNTS))
    return any(words in said for each in known for words in each)
