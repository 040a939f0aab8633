"""A trace through several machines: one pass over it, in as many threads as there are processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from fastmmu._checked import checked
from fastmmu.errors import ConfigError, TraceError
from fastmmu.machine.checkpoint.runs import Checkpoint
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel
from fastmmu.machine.region import Region, running_in
from fastmmu.machine.replay import SystemSource
from fastmmu.machine.result import Result
from fastmmu.machine.running import with_path
from fastmmu.machine.simulate import Progress, Source, batches_of, simulate
from fastmmu.machine.simulation import Exits
from fastmmu.threads.lanes import Lane, in_lanes, workers

__all__ = ["block_bytes", "each", "in_memory"]


@checked
def each(
    trace: Source | SystemSource,
    configs: Sequence[Config],
    *,
    costs: CostModel | None = None,
    progress: Progress | None = None,
    keep_partial: bool = False,
    exits: Exits | None = None,
    jobs: int | None = None,
    warm_up: int | None = None,
    interval: int | None = None,
    sample_every: int | None = None,
    seed: int = 0,
    roi: str | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
) -> Iterator[Result]:
    """The results of a trace under each configuration, in their order, as they are finished.

    The trace is read once. Its events go to all machines, in several threads; memory holds a machine a configuration,
    and 64 MB of events, however long the trace. What a configuration has in Python (``Config.vmm``) runs in these
    threads, in turns.

    :param keep_partial: Ctrl-C ends with what there is, and no exception: a result of a machine that had begun is that
        until then, with ``complete=False``.
    :param exits: as of :func:`simulate`, for all configurations in turn: each is run to its end before the next, and
        the trace is read as often.
    :param jobs: threads, None: one a processor. No result depends on it.
    :param warm_up, interval, sample_every, seed, roi: what is counted, as of :func:`simulate`.
    :param checkpoints: of each configuration, as of :func:`simulate`; they are run in turn then, as with `exits`.
    :raises ConfigError: there are more checkpoints than configurations, or fewer.
    """
    threads, region = workers(jobs), Region(warm_up, interval, sample_every, seed, roi)
    if checkpoints is not None and len(checkpoints) != len(configs):
        raise ConfigError(f"{len(checkpoints)} checkpoints of {len(configs)} configurations; give one for each")
    if exits is not None or checkpoints is not None or (len(configs) == 1 and (threads == 1 or in_memory(trace))):
        return _in_turn(trace, configs, costs, progress, keep_partial, exits, region, checkpoints)

    def lane(config: Config) -> Lane[Result]:
        run = running_in(trace, config, region, costs=costs)
        try:
            while (block := (yield False)) is not None:
                for part in run.parts(block):
                    run.take(part)
                    yield True
        except KeyboardInterrupt:
            if not keep_partial:
                raise
            return run.result(complete=False)
        except TraceError as error:
            raise with_path(error, trace) from error
        return run.result(complete=True)

    return in_lanes(
        [partial(lane, config) for config in configs],
        batches_of(trace),
        jobs=threads,
        size=block_bytes(trace),
        progress=None if progress is None else lambda number, events: progress(configs[number], events),
        partial=keep_partial,
    )


def _in_turn(
    trace: Source | SystemSource,
    configs: Sequence[Config],
    costs: CostModel | None,
    progress: Progress | None,
    keep_partial: bool,
    exits: Exits | None,
    region: Region,
    checkpoints: Sequence[Checkpoint] | None,
) -> Iterator[Result]:
    how: dict[str, Any] = {"costs": costs, "keep_partial": keep_partial, "exits": exits}
    how |= {"warm_up": region.warm_up, "interval": region.interval}
    how |= {"sample_every": region.sample_every, "seed": region.seed, "roi": region.roi}
    for i, config in enumerate(configs):
        done = None if progress is None else partial(progress, config)
        kept = None if checkpoints is None else checkpoints[i]
        result = simulate(trace, config, progress=done, checkpoint=kept, **how)
        yield result
        if not result.complete:
            return


def in_memory(trace: Any) -> bool:
    """Whether a pass over a trace decodes and copies nothing."""
    return bool(getattr(trace, "in_memory", False))


def block_bytes(trace: Any) -> Callable[[Any], int]:
    """What a block of a trace takes, in bytes."""
    if in_memory(trace):
        return lambda block: 0
    if getattr(trace, "kind", "program") == "system":
        return lambda block: int(block.rows.nbytes + block.data.nbytes + block.pages.nbytes)
    return lambda block: int(block.op.nbytes + block.size.nbytes + block.addr.nbytes)
