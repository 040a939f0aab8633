"""Memory images against what the machine itself reported: `expected.json`, QEMU's `info tlb` and `gva2gpa`.

A file is right if its registers are the machine's, as far as it has them; if it maps what the machine mapped, and says
of each mapping that is missing that its tables are not in the file; and if each byte of memory that it has is the byte
that the other files have there. Raw files are placed by the ranges of `ram`, or by those of a file that is as large. A
file of a format that is not read is right if it is refused by its name.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fastmmu
from fastmmu import BusError, FastmmuError, Fault, GuestState, PhysicalMemory
from fastmmu.image import Image, open_image
from fastmmu.image.formats import recognise
from fastmmu.image.source import open_source
from tests.files import Result

PIECE = 1 << 22
LETTERS = "XGPDACTUW"
BITS = (63, 8, 7, 6, 5, 4, 3, 2, 1)


def results(folder: Path) -> Iterator[Result]:
    """One for each file that is no text beside the images."""
    expected = json.loads((folder / "expected.json").read_text())
    gva2gpa = folder / "gva2gpa.json"
    pairs = json.loads(gva2gpa.read_text()) if gva2gpa.exists() else []
    state = GuestState(**expected["registers"])
    images: dict[Path, Image] = {}
    refused: dict[Path, Result] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() or is_text(path):
            continue
        try:
            images[path] = open_image(path)
        except FastmmuError as error:
            refused[path] = refusal(path, error)
    raw = [path for path, image in images.items() if image.format == "raw"]
    with tempfile.TemporaryDirectory() as place:
        images |= placed(raw, images, expected, state, Path(place))
        whole = max(images.values(), key=lambda image: int(np.diff(image.memory.ranges).sum()), default=None)
        for path in sorted({*images, *refused}):
            if path in refused:
                yield refused[path]
                continue
            wrong = [
                *registers(images[path], expected["registers"]),
                *mapped(images[path].memory, state, expected),
                *translated(images[path].memory, state, pairs),
                *(contents(images[path].memory, whole.memory) if whole else ()),
            ]
            yield Result(path.name, not wrong, "; ".join(wrong) or told(images[path], state))


def is_text(path: Path) -> bool:
    """Sources and answers."""
    with path.open("rb") as file:
        head = file.read(4096)
    return bool(head) and all(byte >= 32 or byte in b"\t\n\r" for byte in head)


def refusal(path: Path, error: FastmmuError) -> Result:
    """Right, if the file is of a format that is not read, and the error names it."""
    try:
        row = recognise(open_source(path).head)
    except FastmmuError:
        row = None
    right = row is not None and not row.reader and row.said in str(error) and row.remedy in str(error)
    return Result(path.name, right, f"refused: {error}")


def told(image: Image, state: GuestState) -> str:
    """What a file gives."""
    has = f"{image.format}, {len(image.memory.ranges)} ranges, {int(np.diff(image.memory.ranges).sum()) >> 10:,} KB"
    try:
        rows = fastmmu.mappings(image.memory, state)
    except BusError:
        return f"{has}; the root table is not in the file, which it says"
    missing = (rows.skipped or {}).get(Fault.BUS, 0)
    return f"{has}; {len(rows)} mappings{f', {missing} tables are not in the file' if missing else ''}"


# ---- raw files -------------------------------------------------------------------------------------------------------


def placed(
    raw: list[Path], images: dict[Path, Image], expected: dict[str, Any], state: GuestState, place: Path
) -> dict[Path, Image]:
    """Raw files by the ranges that they fill: alone, several together, or as a file of another format says."""
    found: dict[Path, Image] = {}
    ram = [(int(start), int(size)) for start, size in expected["ram"]]
    known = [ram, *([(int(a), int(b - a)) for a, b in image.memory.ranges.tolist()] for image in images.values())]
    for path in raw:
        size = images[path].memory.nbytes
        ranges = next((each for each in known if len(each) > 1 and sum(n for _, n in each) == size), None)
        if ranges:
            found[path] = open_image(path, map=texts(ranges))
    parts = [path for path in raw if images[path].memory.nbytes in {n for _, n in ram} and path not in found]
    for order in itertools.permutations(parts, len(ram)) if ram and len(parts) <= 6 else ():
        if [images[path].memory.nbytes for path in order] != [n for _, n in ram]:
            continue
        joined = place / "joined"
        with joined.open("wb") as out:
            for path in order:
                out.write(images[path].memory.read(0, images[path].memory.nbytes))
        image = open_image(joined, map=texts(ram))
        if not list(mapped(image.memory, state, expected)):
            return found | dict.fromkeys(order, image)
    return found


def texts(ranges: list[tuple[int, int]]) -> list[str]:
    """As `--map` takes them: one behind the other in the file."""
    offsets = itertools.accumulate((n for _, n in ranges), initial=0)
    return [f"{start:x}={offset:x}:{n:x}" for (start, n), offset in zip(ranges, offsets, strict=False)]


# ---- what is right ---------------------------------------------------------------------------------------------------


def registers(image: Image, expected: dict[str, int]) -> Iterator[str]:
    """Those that the file has and that differ."""
    for name, value in image.cpus[0].items() if image.cpus else ():
        if value != expected[name]:
            yield f"{name} {value:x}, not {expected[name]:x}"


def mapped(memory: PhysicalMemory, state: GuestState, expected: dict[str, Any]) -> Iterator[str]:
    """Mappings that the machine did not have, and missing ones of which nothing says why."""
    want = {(int(row["va"], 16), int(row["pa"], 16), row["size"], row["flags"]) for row in expected["qemu_info_tlb"]}
    try:
        rows = fastmmu.mappings(memory, state)
    except BusError:
        return
    got = {(int(row.va), int(row.pa), int(row["size"]), flags(int(row.leaf))) for row in rows}
    told = (rows.skipped or {}).get(Fault.BUS, 0)
    if got - want:
        yield f"{len(got - want)} mappings that the machine did not have, {min(got - want)}"
    if want - got and not told:
        yield f"{len(want - got)} mappings are missing, {min(want - got)}"
    for name, count in expected.items():
        if name.startswith("mappings_of_cr3_") and not told:
            rows = fastmmu.mappings(memory, state.replace(cr3=int(name.removeprefix("mappings_of_cr3_"), 0)))
            if len(rows) != count:
                yield f"{name}: {len(rows)}, not {count}"
    boot = expected.get("boot_tables")
    if boot and not told:
        rows = fastmmu.mappings(memory, state.replace(cr3=boot["cr3"]))
        if (rows["size"] == 1 << 21).sum() != boot["leaves_2m"] or len(rows) != boot["leaves_2m"]:
            yield f"boot tables: {len(rows)} mappings, not {boot['leaves_2m']}"


def flags(leaf: int) -> str:
    """As `info tlb` prints those of the entry that maps."""
    return "".join(letter if leaf >> bit & 1 else "-" for letter, bit in zip(LETTERS, BITS, strict=True))


def translated(memory: PhysicalMemory, state: GuestState, pairs: list[list[int]]) -> Iterator[str]:
    """Addresses that lead elsewhere than the machine said (-1: nowhere)."""
    if not pairs:
        return
    try:
        found = fastmmu.translate(memory, state, np.array([va for va, _ in pairs], np.uint64))
    except BusError:
        return
    for (va, want), pa, fault in zip(pairs, found.pa.tolist(), found.fault.tolist(), strict=True):
        if fault != Fault.BUS and (-1 if fault else pa) != want:
            yield f"{va:x} leads to {pa:x}, not {want:x}"


def contents(memory: PhysicalMemory, other: PhysicalMemory) -> Iterator[str]:
    """Bytes that two files do not agree on."""
    for start, end in memory.ranges.tolist():
        for first, last in other.ranges.tolist():
            for at in range(max(start, first), min(end, last), PIECE):
                n = min(PIECE, end - at, last - at)
                if memory.read(at, n) != other.read(at, n):
                    yield f"bytes differ within {n:#x} at {at:#x}"
                    return
