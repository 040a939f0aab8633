"""--caches: data caches under every reference of a run."""

from __future__ import annotations

import argparse

__all__ = ["add_caches"]


def add_caches(parser: argparse.ArgumentParser) -> None:
    """--caches."""
    group = parser.add_argument_group("data caches")
    group.add_argument(
        "--caches",
        metavar="PRESET",
        help="caches and memory under every reference: skylake, zen2, ..., also 'skylake l3=16m/16'; default: none and "
        "shares of the cost model",
    )
