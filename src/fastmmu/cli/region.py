"""--warm-up, --interval, --sample-every, --seed, --roi: what is counted of a run."""

from __future__ import annotations

import argparse
from typing import Any

from fastmmu.cli import options as shared
from fastmmu.errors import ConfigError

__all__ = ["add_region", "region_of", "sampled"]


def add_region(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("what is counted")
    group.add_argument(
        "--warm-up", type=shared.count(0), metavar="N", help="not the first N accesses, which are run: what follows"
    )
    group.add_argument(
        "--interval", type=shared.count(1), metavar="N", help="counters of every N accesses, a row each in files"
    )
    group.add_argument(
        "--sample-every",
        type=shared.count(1),
        metavar="K",
        help="of K intervals one is counted: means with confidence intervals; --warm-up N: of what lies between them "
        "the last N accesses are run, of the others what touches a page in a new way",
    )
    group.add_argument("--seed", type=shared.count(0), metavar="N", help="draws the intervals that are counted (0)")
    group.add_argument(
        "--roi", metavar="A[:B]", help="of a system trace what lies between its marks A and B; A: up to the next one"
    )


def region_of(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as parameters of :func:`fastmmu.simulate`.

    :raises ConfigError: a part of it is missing.
    """
    given = {name: getattr(options, name, None) for name in ("warm_up", "interval", "sample_every", "seed", "roi")}
    if given["sample_every"] is not None and given["interval"] is None:
        raise ConfigError("--sample-every K needs --interval N, the accesses of what is counted")
    if given["seed"] is not None and given["sample_every"] is None:
        raise ConfigError("--seed draws a sample; give --sample-every K, too")
    return {name: value for name, value in given.items() if value is not None}


def sampled(options: argparse.Namespace) -> bool:
    """Whether runs are sampled, so that tables and files have estimates."""
    return getattr(options, "sample_every", None) is not None
