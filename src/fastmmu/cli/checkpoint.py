"""--checkpoint, --checkpoint-every: where runs keep how far they came."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fastmmu.cli import options as shared
from fastmmu.errors import ConfigError

if TYPE_CHECKING:
    from fastmmu.machine.checkpoint.runs import Checkpoint

__all__ = ["EVERY", "add_checkpoint", "check_checkpoint", "checkpoint_of"]

EVERY = 1_000_000_000


def add_checkpoint(parser: argparse.ArgumentParser, what: str = "events") -> None:
    """The options."""
    group = parser.add_argument_group("a run that may be ended")
    group.add_argument(
        "--checkpoint", metavar="FILE", help="keep how far it came there, and go on from what is there; of several "
        "runs FILE.1, FILE.2, ..."
    )  # fmt: skip
    group.add_argument(
        "--checkpoint-every", type=shared.count(1), metavar="N", help=f"{what} between two of them; default: 1g"
    )


def check_checkpoint(options: argparse.Namespace) -> None:
    """Refuse before the run what could not be written during it."""
    if getattr(options, "checkpoint", None) is None:
        if getattr(options, "checkpoint_every", None) is not None:
            raise ConfigError("--checkpoint-every goes with --checkpoint FILE; name the file")
        return
    if options.checkpoint == "-":
        raise ConfigError("--checkpoint - : what is there is read at the next start; name a file")
    from fastmmu.report.files import check_target

    check_target(options.checkpoint, "json")


def checkpoint_of(options: argparse.Namespace, number: int, runs: int) -> Checkpoint | None:
    """That of a run of the command, by its number from 0 on; None: it has none."""
    from fastmmu.machine.checkpoint.runs import Checkpoint

    path = getattr(options, "checkpoint", None)
    if path is None:
        return None
    return Checkpoint(path if runs == 1 else f"{path}.{number + 1}", options.checkpoint_every or EVERY)
