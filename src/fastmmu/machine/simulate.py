"""A trace through a machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked_but
from fastmmu.errors import ConfigError, OutOfMemoryError, TraceError
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel
from fastmmu.machine.identity import Content, Origin
from fastmmu.machine.policy import Policy
from fastmmu.machine.replay import Replay, SystemSource
from fastmmu.machine.result import Result
from fastmmu.machine.simulation import Events, Exits, Part, Simulation, Stream, result_of

__all__ = ["Progress", "Running", "Source", "batches_of", "running", "simulate"]

Progress = Callable[[Config, int], None]
"""Called now and then with the configuration that runs and the number of events done."""

_SHORT, _LONG = 0.01, 0.05  # seconds that a part of a block is to take


class Source(Protocol):
    """What gives events in batches, see :class:`fastmmu.trace.Trace`; its ``kind``, if it has one, is "program", its
    ``content`` the hash of its events (:class:`~fastmmu.machine.identity.Content`)."""

    @property
    def name(self) -> str: ...
    def batches(self) -> Iterator[Events]: ...


@checked_but("config", "policy")
def simulate(
    trace: Source | SystemSource | npt.ArrayLike,
    config: Config | None = None,
    *,
    policy: Policy | None = None,
    costs: CostModel | None = None,
    progress: Callable[[int], None] | None = None,
    keep_partial: bool = False,
    exits: Exits | None = None,
) -> Result:
    """Run a whole trace.

    >>> result = fastmmu.simulate(fastmmu.read_trace("ls.lackey.xz"), fastmmu.Config(mmu="ept", vpid=True))
    >>> result.counters["tlb_misses"], result.cycles

    :param trace: what :func:`fastmmu.read_trace` gives, or a 1-D array of linear addresses, each a read. A system trace
        runs over its own page tables, and a note says whether every physical address was the trace's.
    :param progress: called after each batch with the number of events done.
    :param keep_partial: Ctrl-C gives the result until then, with ``complete=False``, instead of an exception.
    :param exits: is given every VM exit, an array of ``fastmmu.dtypes.EXIT_DTYPE`` now and then, so that a log of all
        takes no memory; the last ones are ``Result.exit_log`` (``Config.exit_log``).
    :raises TraceError: the trace is malformed. :raises OutOfMemoryError: guest memory is used up.
    """
    if isinstance(trace, str) or hasattr(trace, "__fspath__"):
        raise ConfigError(f"simulate takes a trace, not a path; pass fastmmu.read_trace({str(trace)!r})")
    simulation = running(trace, config, policy=policy, costs=costs, exits=exits)
    try:
        for block in batches_of(trace):
            simulation.take(block)
            if progress is not None:
                progress(simulation.events)
        return simulation.result(complete=True)
    except KeyboardInterrupt:
        if not keep_partial:
            raise
        simulation.give()
        return simulation.result(complete=False)
    except TraceError as error:
        raise with_path(error, trace) from error


def _named(trace: Any) -> tuple[str, str]:
    """Name and path of what was run."""
    return str(getattr(trace, "name", "array")), str(getattr(trace, "path", None) or "")


class Running(Protocol):
    """A run of a trace of either kind, block by block."""

    @property
    def events(self) -> int:
        """Events, or records, carried out."""

    def parts(self, block: Any) -> Iterator[Any]:
        """A block in parts that take a twentieth of a second or so, each, by how long the last one took."""

    def take(self, block: Any) -> None:
        """Carry out a block, or a part of one."""

    def give(self) -> None:
        """Give the exits until now to who wants them."""

    def result(self, *, complete: bool) -> Result:
        """What it came to until now."""


def running(
    trace: Any,
    config: Config | None,
    *,
    policy: Policy | None = None,
    costs: CostModel | None = None,
    exits: Exits | None = None,
) -> Running:
    """A run that begins."""
    run = _Replaying if getattr(trace, "kind", "program") == "system" else _Running
    return run(trace, config, policy, costs, exits)


def with_path(error: TraceError, trace: Any) -> TraceError:
    """The error, with the file of the trace where it names none."""
    path = getattr(trace, "path", None)
    return TraceError(str(error), path=str(path)) if path and not error.path else error


class _Running:
    """A trace of events."""

    def __init__(
        self, trace: Any, config: Config | None, policy: Policy | None, costs: CostModel | None, exits: Exits | None
    ) -> None:
        self.trace = trace
        self.simulation = Simulation(config, policy=policy, costs=costs, exits=exits)
        if hasattr(trace, "content"):  # it hashes its events itself, once for all runs
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
            yield block if whole else block[part] if hasattr(block, "instructions") else Part.of(block, part)
            took = time.perf_counter() - began
            if took < _SHORT:
                self.some *= 2
            elif took > _LONG and self.some > 1 << 10:
                self.some //= 2

    def take(self, block: Any) -> None:
        self.simulation.feed(block)

    def give(self) -> None:
        if self.simulation.exits is not None:
            self.simulation.exits.give()

    def result(self, *, complete: bool) -> Result:
        name, path = _named(self.trace)
        known = str(getattr(self.trace, "content", ""))
        return self.simulation.result(trace=name, path=path, content=known, complete=complete)


class _Replaying:
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

    def take(self, block: Any) -> None:
        try:
            self.replay.feed(block)
            self.content.update(block.rows.view(np.uint8), block.data, block.pages.reshape(-1))
        finally:
            self.give()

    def give(self) -> None:
        if self.exits is not None:
            self.exits.give()

    def result(self, *, complete: bool) -> Result:
        run, origin = self.replay, Origin(*_named(self.replay.source), self.content.digest())
        how = (run.result(tables=complete).line(),), self.policy, run.counters()
        return result_of(run.machine, self.costs, run.seconds, origin, complete, *how)


_CHUNK = 1 << 18
_READS, _BYTES = np.zeros(_CHUNK, np.uint8), np.ones(_CHUNK, np.uint8)
_READS.flags.writeable = _BYTES.flags.writeable = False


class _Columns:
    def __init__(self, addr: npt.NDArray[np.uint64]) -> None:
        self.addr = addr
        self.op, self.size = _READS[: len(addr)], _BYTES[: len(addr)]


def batches_of(trace: Any) -> Iterator[Any]:
    """The blocks of a pass over a trace of either kind, or over a 1-D array of linear addresses."""
    if getattr(trace, "kind", "program") == "system":
        yield from trace.records()
        return
    if hasattr(trace, "batches"):
        yield from trace.batches()
        return
    try:
        array = np.asarray(trace)
    except MemoryError as error:
        raise OutOfMemoryError("no memory for the trace as an array; give it in parts") from error
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.uint64)
    if array.ndim != 1 or array.dtype.kind not in "ui":
        raise TraceError(
            f"a trace is what read_trace gives or a 1-D array of integers, not {type(trace).__name__} "
            f"of shape {array.shape} and dtype {array.dtype}"
        )
    for start in range(0, len(array), _CHUNK):
        yield _Columns(np.ascontiguousarray(array[start : start + _CHUNK], dtype=np.uint64))
