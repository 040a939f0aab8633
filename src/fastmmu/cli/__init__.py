"""The command line: `fastmmu compare`, `run`, `walk`, `trace`."""

from __future__ import annotations

from fastmmu.cli.main import main

__all__ = ["main"]
