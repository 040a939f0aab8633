"""A trace through a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked_but
from fastmmu.errors import ConfigError, OutOfMemoryError, TraceError
from fastmmu.machine.checkpoint.runs import Checkpoint, Keeper
from fastmmu.machine.config import Config, as_config
from fastmmu.machine.costs import CostModel
from fastmmu.machine.policy import Policy
from fastmmu.machine.region import Region, running_in
from fastmmu.machine.replay import SystemSource
from fastmmu.machine.result import Result
from fastmmu.machine.running import Resumable, with_path
from fastmmu.machine.simulation import Events, Exits

__all__ = ["Progress", "Source", "batches_of", "simulate"]

Progress = Callable[[Config, int], None]
"""Called now and then with the configuration that runs and the number of events done."""


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
    warm_up: int | None = None,
    interval: int | None = None,
    sample_every: int | None = None,
    seed: int = 0,
    roi: str | None = None,
    checkpoint: Checkpoint | None = None,
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
    :param warm_up: accesses that are run before what is counted: the result is the difference of the counters.
    :param interval: also the counters of every so many accesses, ``Result.series``.
    :param sample_every: of so many intervals one is counted, drawn by `seed`: ``Result.sample`` says with which error
        that is the whole. Between them `warm_up` accesses are run, None: all; before these, only what touches a page in
        a new way.
    :param roi: of a system trace what is counted, by its marks: "3", from mark 3 to the next one, "3:5", "3:" or ":5".
    :param checkpoint: where the run keeps how far it came; what stands there is gone on from, and the result is the
        same. Not with `exits`, which would be given none of those before.
    :raises ConfigError: the trace ends within the warm-up, or before an interval was counted.
    :raises CheckpointError: a checkpoint of another run.
    :raises TraceError: the trace is malformed. :raises OutOfMemoryError: guest memory is used up.
    """
    if isinstance(trace, str) or hasattr(trace, "__fspath__"):
        raise ConfigError(f"simulate takes a trace, not a path; pass fastmmu.read_trace({str(trace)!r})")
    simulation = running_in(
        trace, config, Region(warm_up, interval, sample_every, seed, roi), policy=policy, costs=costs, exits=exits
    )
    blocks = batches_of(trace)
    if checkpoint is not None:
        if exits is not None:
            raise ConfigError("exits= is given exits as they come, which a run that goes on does not repeat; leave out "
                              "checkpoint=, or keep the last exits by Config(exit_log=)")  # fmt: skip
        if sample_every is not None:
            raise ConfigError(
                "most of a sampled run is not run, and it is not kept; leave out checkpoint=, or sample_every="
            )
        if roi is not None:
            raise ConfigError("where a run began to be counted by marks is not kept; leave out checkpoint=, or roi=")
        run = cast(Resumable, simulation)
        keeper = Keeper(run, checkpoint, as_config(config), region=(warm_up, interval), policy=policy)
        blocks = keeper.rest(blocks)
    try:
        for block in blocks:
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
