"""A run of a trace of either kind, block by block."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastmmu.errors import TraceError
from fastmmu.machine.cache_counts import cache_counts
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel
from fastmmu.machine.identity import Content, Origin
from fastmmu.machine.machine import Machine
from fastmmu.machine.policy import Policy
from fastmmu.machine.replay import Replay
from fastmmu.machine.result import Result
from fastmmu.machine.simulation import Exits, Part, Simulation, Stream, result_of
from fastmmu.ops import RecordOp

__all__ = ["Counted", "Kept", "Replaying", "Resumable", "Running", "running", "with_path"]

_SHORT, _LONG = 0.01, 0.05  # seconds that a part of a block is to take
_DATA_FLAG = 1  # of a record with a value in `data`


class Counted(NamedTuple):
    """What a run has counted until some access: counters, those of the TLB, wall time, those of data caches."""

    counters: dict[str, Any]
    tlb: dict[str, Any]
    seconds: float
    caches: dict[str, int] | None = None


class Kept(NamedTuple):
    """Of a run: its machine, and what else it has, in forms of JSON, and arrays."""

    machine: Machine
    more: dict[str, Any]
    arrays: dict[str, Any]


class Running(Protocol):
    """A run of a trace of either kind, block by block."""

    @property
    def events(self) -> int:
        """Events, or records, carried out."""

    def parts(self, block: Any) -> Iterator[Any]:
        """A block in parts that take a twentieth of a second or so, each, by how long the last one took."""

    def cut(self, block: Any, part: slice) -> Any:
        """A part of a block."""

    def take(self, block: Any) -> None:
        """Carry out a block, or a part of one."""

    def give(self) -> None:
        """Give the exits until now to who wants them."""

    def counters(self) -> dict[str, Any]:
        """Counters until now."""

    def counted(self) -> Counted:
        """All that it has counted until now."""

    def result(self, *, complete: bool) -> Result:
        """What it came to until now."""


class Resumable(Running, Protocol):
    """A run that can be kept."""

    def kept(self) -> Kept:
        """What a checkpoint has of it.

        :raises CheckpointError: it cannot be saved.
        """

    def resume(self, kept: Kept) -> None:
        """Go on from there, a run that has not begun."""


def running(
    trace: Any,
    config: Config | None,
    *,
    policy: Policy | None = None,
    costs: CostModel | None = None,
    exits: Exits | None = None,
    hashed: bool = True,
) -> Resumable:
    """A run that begins. hashed: of events that have no hash yet it makes one."""
    if getattr(trace, "kind", "program") == "system":
        return Replaying(trace, config, policy, costs, exits)
    return _Running(trace, config, policy, costs, exits, hashed)


def with_path(error: TraceError, trace: Any) -> TraceError:
    """The error, with the file of the trace where it names none."""
    path = getattr(trace, "path", None)
    return TraceError(str(error), path=str(path)) if path and not error.path else error


class _Running:
    """A trace of events."""

    def __init__(
        self,
        trace: Any,
        config: Config | None,
        policy: Policy | None,
        costs: CostModel | None,
        exits: Exits | None,
        hashed: bool,
    ) -> None:
        self.trace = trace
        self.simulation = Simulation(config, policy=policy, costs=costs, exits=exits)
        if not hashed or hasattr(trace, "content"):  # it hashes its events itself, once for all runs
            self.simulation.content = None
        self.simulation.counted = getattr(trace, "instructions", None)
        self.some = 1 << 14

    @property
    def events(self) -> int:
        return self.simulation.events

    def parts(self, block: Any) -> Iterator[Any]:
        n = len(block.addr)
        at = 0
        while at < n:
            part = slice(at, at + self.some)
            at += self.some
            whole = part.start == 0 and at >= n
            began = time.perf_counter()
            yield block if whole else self.cut(block, part)
            took = time.perf_counter() - began
            if took < _SHORT:
                self.some *= 2
            elif took > _LONG and self.some > 1 << 10:
                self.some //= 2

    def cut(self, block: Any, part: slice) -> Any:
        return block[part] if hasattr(block, "instructions") else Part.of(block, part)

    def take(self, block: Any) -> None:
        self.simulation.feed(block)

    def give(self) -> None:
        if self.simulation.exits is not None:
            self.simulation.exits.give()

    def counters(self) -> dict[str, Any]:
        found: dict[str, Any] = self.simulation.machine.counters()
        if self.simulation.counted is not None:
            found["instructions"] = self.simulation.instructions
        return found

    def counted(self) -> Counted:
        machine = self.simulation.machine
        return Counted(self.counters(), machine.tlb.counters(), self.simulation.seconds, cache_counts(machine))

    def kept(self) -> Kept:
        run = self.simulation
        content, arrays = (None, {}) if run.content is None else run.content.kept()
        more = {"instructions": run.instructions, "seconds": run.seconds, "content": content}
        return Kept(run.machine, more, dict(arrays))

    def resume(self, kept: Kept) -> None:
        run = self.simulation
        run.resume(kept.machine)
        run.instructions, run.seconds = int(kept.more["instructions"]), float(kept.more["seconds"])
        if run.content is not None:
            run.content.resume(kept.more["content"], kept.arrays)

    def result(self, *, complete: bool) -> Result:
        name, path = _named(self.trace)
        known = str(getattr(self.trace, "content", ""))
        return self.simulation.result(trace=name, path=path, content=known, complete=complete)


class Replaying:
    """A system trace."""

    def __init__(
        self, trace: Any, config: Config | None, policy: Policy | None, costs: CostModel | None, exits: Exits | None
    ) -> None:
        self.costs, self.policy = costs or CostModel.load(), policy
        self.replay = Replay(trace, config, policy=policy)
        self.exits = None if exits is None else Stream(self.replay.machine, self.costs, exits)
        self.content = Content()

    @property
    def events(self) -> int:
        return self.replay.records

    def parts(self, block: Any) -> Iterator[Any]:
        yield block

    def cut(self, block: Any, part: slice) -> Any:
        stored, tables = block.rows["flags"] & _DATA_FLAG != 0, block.rows["op"] == RecordOp.TABLE
        data, pages = (slice(int(a), int(b)) for a, b in (
            (np.count_nonzero(rows[: part.start]), np.count_nonzero(rows[: part.stop])) for rows in (stored, tables)
        ))  # fmt: skip
        first, rows = block.first + (part.start or 0), block.rows[part]
        return replace(block, first=first, rows=rows, data=block.data[data], pages=block.pages[pages])

    def take(self, block: Any) -> None:
        try:
            self.replay.feed(block)
            self.content.update(block.rows.view(np.uint8), block.data, block.pages.reshape(-1))
        finally:
            self.give()

    def give(self) -> None:
        if self.exits is not None:
            self.exits.give()

    def counters(self) -> dict[str, Any]:
        return self.replay.counters()

    def counted(self) -> Counted:
        machine = self.replay.machine
        return Counted(self.counters(), machine.tlb.counters(), self.replay.seconds, cache_counts(machine))

    def kept(self) -> Kept:
        more, arrays = self.replay.kept()
        content, sums = self.content.kept()
        return Kept(self.replay.machine, {**more, "content": content}, {**arrays, **sums})

    def resume(self, kept: Kept) -> None:
        self.replay.resume(kept.machine, kept.more, kept.arrays)
        self.content.resume(kept.more["content"], kept.arrays)

    def result(self, *, complete: bool) -> Result:
        run, origin = self.replay, Origin(*_named(self.replay.source), self.content.digest())
        how = (run.result(tables=complete).line(),), self.policy, run.counters()
        return result_of(run.machine, self.costs, run.seconds, origin, complete, *how)


def _named(trace: Any) -> tuple[str, str]:
    """Name and path of what was run."""
    return str(getattr(trace, "name", "array")), str(getattr(trace, "path", None) or "")
