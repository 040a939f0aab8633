"""Every public class has a rule for threads in its docstring, and is in the table of docs/threads.md."""

from __future__ import annotations

import enum
import importlib
import re
from pathlib import Path

import pytest

import fastmmu

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
KERNEL_PARTS = {
    "Board",
    "ExitRing",
    "Turns",
    "Turn",
    "_Archive",
    "_Batch",
    "_Core",
    "_Cpu",
    "_Fetched",
    "_HostVcpu",
    "_Hosted",
    "_Run",
    "_Search",
}  # users hold none


def public() -> dict[str, type]:
    found = {name: getattr(fastmmu, name) for name in fastmmu.__all__}
    for path in sorted(SRC.rglob("*.pyx")):
        for name in re.findall(r"^cdef class (\w+)", path.read_text(), re.MULTILINE):
            module = importlib.import_module(".".join(path.relative_to(SRC).with_suffix("").parts))
            found[name] = getattr(module, name)
    return {
        name: one
        for name, one in found.items()
        if isinstance(one, type) and not issubclass(one, Exception | enum.Enum | tuple) and name not in KERNEL_PARTS
    }


@pytest.mark.parametrize("name", public())
def test_each_class_says_what_threads_may_do(name: str) -> None:
    assert re.search(r"^ *Threads: [a-z]", public()[name].__doc__ or "", re.MULTILINE)


def test_the_table_names_them_all() -> None:
    table = [line for line in (ROOT / "docs" / "threads.md").read_text().splitlines() if line.startswith("| `")]
    named = {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert set(public()) <= named
    assert len(public()) >= 30
