"""`python -m tests.files`: files that people have, of the tools that write them, each read right or refused by name.

A folder (FASTMMU_FILES, else ../shared/files) has a folder a kind, each with the right answers in `expected.json`:

    images   memory images                 images.py
    traces   memory traces                 traces.py
    kvm      logs of KVM                   kvm.py

The module of a kind has `results(folder)`, which gives a `Result` for each file of the folder. It goes by expected.json
and by what the files hold, never by their names. To add a kind: its module; it is found by its name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["KINDS", "Result", "folder"]

KINDS = ("images", "traces", "kvm")


class Result(NamedTuple):
    """What one file came to. ``text``: what it gives, and where it is wrong what would be right."""

    name: str
    right: bool
    text: str


def folder() -> Path:
    """The folder of the samples, there or not."""
    named = os.environ.get("FASTMMU_FILES")
    return Path(named) if named else Path(__file__).parents[3] / "shared" / "files"
