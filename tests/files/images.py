"""Memory images against the mappings that the machine itself reported (`expected.json`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastmmu import FastmmuError
from fastmmu.image import open_raw
from tests.files import Result


def results(folder: Path) -> Iterator[Result]:
    """One for each file that is no text beside the images."""
    for path in sorted(folder.iterdir()):
        if is_text(path):
            continue
        try:
            memory = open_raw(path)
        except FastmmuError as error:
            yield Result(path.name, False, f"refused: {error}")
        else:
            yield Result(path.name, False, f"read as raw memory of {memory.nbytes} bytes, not compared")


def is_text(path: Path) -> bool:
    """Sources and answers."""
    with path.open("rb") as file:
        head = file.read(4096)
    return bool(head) and all(byte >= 32 or byte in b"\t\n\r" for byte in head)
