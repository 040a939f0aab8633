"""A replay that keeps how far it came, and goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fastmmu.machine.checkpoint.runs import Checkpoint, Keeper
from fastmmu.machine.config import Config
from fastmmu.machine.replay import Replayed
from fastmmu.machine.running import Replaying
from fastmmu.trace.system import SystemTrace

__all__ = ["replay_kept"]


def replay_kept(
    trace: SystemTrace,
    config: Config,
    checkpoint: Checkpoint,
    *,
    progress: Callable[[float | None, int], None] | None = None,
    keep_partial: bool = False,
) -> Iterator[tuple[str, Replayed, bool]]:
    """As :func:`fastmmu.study.replay.run.replays` of one replay without omissions, in this thread.

    :raises CheckpointError: a checkpoint of another replay, or a trace of several CPUs.
    """
    run = Replaying(trace, config, None, None, None)
    complete = True
    try:
        for chunk in Keeper(run, checkpoint, config).rest(trace.records()):
            run.take(chunk)
            if progress is not None:
                progress(trace.progress(), run.events)
    except KeyboardInterrupt:
        if not keep_partial:
            raise
        complete = False
    yield "", run.replay.result(tables=complete), complete
