"""The command line: a module a command."""

from __future__ import annotations

from fastmmu.cli.main import main

__all__ = ["main"]
