"""--warm-up, --interval: what is counted of a run."""

from __future__ import annotations

import argparse
from typing import Any

from fastmmu.cli import options as shared

__all__ = ["add_region", "region_of"]


def add_region(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("what is counted")
    group.add_argument(
        "--warm-up", type=shared.count(0), metavar="N", help="not the first N accesses, which are run: what follows"
    )
    group.add_argument(
        "--interval", type=shared.count(1), metavar="N", help="files have a row for every N accesses, a picture is one "
        "over time"
    )  # fmt: skip


def region_of(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as parameters of :func:`fastmmu.simulate`."""
    return {"warm_up": getattr(options, "warm_up", None) or 0, "interval": getattr(options, "interval", None)}
