"""Where recordings of other machines lie: a sample of each kind in the project, all of them where a variable says."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["all_of", "sample_of"]

ROOT = Path(__file__).resolve().parents[2]


def sample_of(name: str) -> Path:
    """The reduced recordings that the project carries."""
    return ROOT / "tests" / "data" / name


def all_of(name: str, variable: str) -> Path:
    """The directory that the environment variable names, else ../shared/NAME beside the project."""
    named = os.environ.get(variable)
    return Path(named) if named else ROOT.parent / "shared" / name
