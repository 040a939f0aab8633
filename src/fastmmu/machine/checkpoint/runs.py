"""A run that keeps how far it came, and goes on from there: after a block of events at the end of every so many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmmu.errors import CheckpointError, ConfigError
from fastmmu.machine.checkpoint.machines import OWN, Stored, machine_of, own, read, stored, write
from fastmmu.machine.config import Config
from fastmmu.machine.identity import Content
from fastmmu.machine.policy import Policy
from fastmmu.machine.running import Kept, Resumable

__all__ = ["Checkpoint", "Keeper"]


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps how far it came. path: a file; every: events, or records of a system trace, between two times
    that it is written.

    :raises ConfigError: `every` is below 1.

    Threads: immutable; share it.
    """

    path: str | os.PathLike[str]
    every: int = 1_000_000_000

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ConfigError(f"Checkpoint: every={self.every!r}: give the events between two checkpoints, 1 or more")


class Keeper:
    """Deals the blocks of a trace out to a run, and writes checkpoints between them.

    Where the file is there the run, which has not begun, goes on from it: the events that it had are read, hashed and
    compared, and not run. :meth:`rest` gives the blocks that follow, cut where checkpoints are due.

    :param region: what is counted of the run, in forms of JSON. :param config: what the run was asked for.
    :raises CheckpointError: the file is damaged, or of another version, configuration, region or policy.
    """

    def __init__(
        self,
        run: Resumable,
        checkpoint: Checkpoint,
        config: Config,
        *,
        region: tuple[int | None, int | None] = (None, None),
        policy: Policy | None = None,
    ) -> None:
        self.run, self.checkpoint, self.config, self.policy = run, checkpoint, config, policy
        self.region = list(region)
        self.content = Content()
        self.written = -1  # events of the last checkpoint
        self.expected: tuple[int, str] | None = None  # events that are not run again, and their hash
        if Path(checkpoint.path).exists():
            self._resume()

    def _resume(self) -> None:
        name, found = os.fspath(self.checkpoint.path), read(self.checkpoint.path)
        more = found.header.more
        if more.get("what") != "run":
            raise CheckpointError(f"{name}: a machine's, and no run's; remove it, or name another file")
        self._same(name, more)
        vmm = None if isinstance(self.config.vmm, str) else self.config.vmm
        machine = machine_of(found, policy=self.policy, vmm=vmm)
        try:
            self.run.resume(Kept(machine, more["run"], own(found.arrays)))
            self.expected = int(more["events"]), str(more["content"])
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{name}: damaged: {type(error).__name__}: {error}") from error
        if self.expected[0] != self.run.events:
            raise CheckpointError(f"{name}: damaged: {self.expected[0]} events, and its machine did {self.run.events}")
        self.written = self.run.events

    def _same(self, name: str, more: dict[str, Any]) -> None:
        asked, was = self.config.fields(), more.get("config")
        if not isinstance(was, dict):
            raise CheckpointError(f"{name}: damaged: no configuration")
        for field, value in asked.items():
            if was.get(field) != value:
                raise CheckpointError(f"{name}: of a run with {field}={was.get(field)!r}, this one has {value!r}; "
                                      "remove the file, or name another one")  # fmt: skip
        if more.get("region") != self.region:
            raise CheckpointError(f"{name}: of a run with warm_up and interval {more.get('region')}, this one has "
                                  f"{self.region}; remove the file, or name another one")  # fmt: skip

    def rest(self, blocks: Iterator[Any]) -> Iterator[Any]:
        """The blocks that are to be run, cut where a checkpoint is due; each is run before the next is asked for.

        :raises CheckpointError: the events before them are not those of the checkpoint.
        """
        events = 0
        for block in blocks:
            at, n = 0, _length(block)
            if self.expected is not None:
                at = min(n, self.expected[0] - events)
                if at:
                    self._seen(self.run.cut(block, slice(0, at)))
                events += at
                self._compare(events)
            while at < n:
                end = min(n, at + self.checkpoint.every - events % self.checkpoint.every)
                part = block if (at, end) == (0, n) else self.run.cut(block, slice(at, end))
                yield part
                self._seen(part)
                events, at = events + end - at, end
                if events % self.checkpoint.every == 0:
                    self.write()
        if self.expected is not None:
            raise CheckpointError(
                f"{os.fspath(self.checkpoint.path)}: of {self.expected[0]} events, and the trace has {events}; it is "
                "of another trace: remove the file, or name another one"
            )
        self.write()

    def _compare(self, events: int) -> None:
        if self.expected is None or events < self.expected[0]:
            return
        if self.content.digest() != self.expected[1]:
            raise CheckpointError(
                f"{os.fspath(self.checkpoint.path)}: of another trace: its first {events} events are others; remove "
                "the file, or name another one"
            )
        self.expected = None

    def _seen(self, block: Any) -> None:
        if hasattr(block, "rows"):
            self.content.update(block.rows.view(np.uint8), block.data, block.pages.reshape(-1))
        else:
            self.content.update(*(np.ascontiguousarray(column) for column in (block.op, block.size, block.addr)))

    def write(self) -> None:
        """A checkpoint, unless this one is there.

        :raises OSError: it cannot be written; the last one stays.
        """
        if self.run.events == self.written:
            return
        kept = self.run.kept()
        more = {
            "what": "run",
            "config": self.config.fields(),
            "region": self.region,
            "events": self.run.events,
            "content": self.content.digest(),
            "run": kept.more,
        }
        found: Stored = stored(kept.machine, more, {OWN + name: array for name, array in kept.arrays.items()})
        write(self.checkpoint.path, found)
        self.written = self.run.events


def _length(block: Any) -> int:
    return len(block.rows) if hasattr(block, "rows") else len(block.op)
