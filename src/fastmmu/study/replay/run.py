"""What a whole Linux does to each scheme: a system trace replayed in all of them, VM exits side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.replay import Replay, Replayed
from fastmmu.machine.result import Result
from fastmmu.machine.side_by_side import block_bytes
from fastmmu.study.replay.over_time import OverTime
from fastmmu.study.schemes import REPLAY as SCHEMES
from fastmmu.study.schemes import fields_of
from fastmmu.threads.lanes import Lane, in_lanes
from fastmmu.trace.system import SystemTrace

RING = 4096
Told = Callable[[str, Result], None]
"""Told of a run: its scheme or omission, and its result with what it came to over time."""

__all__ = ["SCHEMES", "Ran", "replay_schemes", "replays"]


@dataclass(frozen=True)
class Ran:
    """One scheme: what the replay came to, the machine's counters, the VMM's; pages in dirty logs, None if not logged;
    of several CPUs pages stored to that a log left out, `missed`.

    None in place of the first two where the scheme cannot run the guest, and `why`.
    """

    scheme: str
    found: Replayed | None
    counters: dict[str, Any]
    logged: int | None
    why: str = ""
    missed: int | None = None


@checked
def replay_schemes(
    trace: SystemTrace,
    schemes: Sequence[str] = tuple(SCHEMES),
    *,
    progress: Callable[[str, float | None, int], None] | None = None,
    jobs: int | None = None,
    told: Callable[[str, Result], None] | None = None,
    **config: Any,
) -> Iterator[Ran]:
    """Replay a system trace in each scheme, in one pass over it and several threads; the results in their order.

    :param config: fields of :class:`Config` for all of them, such as ``tlb``.
    :param told: is given of each scheme that has ended its name and its :class:`Result`, in any of the threads.
    :param jobs: threads, None: one a processor. No result depends on it.
    :raises ConfigError: an unknown scheme.
    """
    fields = [config | fields_of(scheme, SCHEMES, kvm=config.get("kvm")) for scheme in schemes]
    done = None if progress is None else lambda number, n: progress(schemes[number], trace.progress(), n)
    yield from in_lanes(
        [partial(_ran, trace, scheme, found, told) for scheme, found in zip(schemes, fields, strict=True)],
        trace.records(),
        jobs=jobs,
        size=block_bytes(trace),
        progress=done,
    )


@checked
def replays(
    trace: SystemTrace,
    config: Config,
    omissions: Sequence[str] = ("",),
    *,
    progress: Callable[[float | None, int], None] | None = None,
    keep_partial: bool = False,
    jobs: int | None = None,
    told: Callable[[str, Result], None] | None = None,
) -> Iterator[tuple[str, Replayed, bool]]:
    """Replay a system trace as often as something is left out: each time (what, what it came to, True).

    :param omissions: of :data:`fastmmu.machine.replay.OMISSIONS`, also of one CPU ("invlpg@1"); "" for none.
    :param progress: called with the part of the trace that was read, and the records that the first run not yet given
        is done with.
    :param keep_partial: Ctrl-C gives what the runs came to until then, with False. :param jobs: threads, None: one a
        processor; one more than the runs is of use, it reads the trace. :param told: as of :func:`replay_schemes`.
    """
    done = None if progress is None else lambda _, n: progress(trace.progress(), n)
    yield from in_lanes(
        [partial(_replay, trace, config, omission, keep_partial, told) for omission in omissions],
        trace.records(),
        jobs=jobs,
        size=block_bytes(trace),
        progress=done,
        partial=keep_partial,
    )


def _replay(
    trace: SystemTrace, config: Config, omission: str, keep: bool, told: Told | None
) -> Lane[tuple[str, Replayed, bool]]:
    replay = Replay(trace, config, omit=[omission] if omission else [])
    over_time = OverTime(replay, told)
    complete = True
    try:
        while (chunk := (yield False)) is not None:
            replay.feed(chunk)
            over_time.note()
    except KeyboardInterrupt:
        if not keep:
            raise
        complete = False
    found = replay.result(tables=complete)
    over_time.tell(omission, found, complete)
    return omission, found, complete


def _ran(trace: SystemTrace, scheme: str, fields: dict[str, Any], told: Told | None) -> Lane[Ran]:
    try:
        replay = Replay(trace, Config(**fields))
    except ConfigError as error:
        return Ran(scheme, None, {}, None, str(error))
    over_time = OverTime(replay, told)
    logged = 0 if "logged" in scheme else None
    missed, stored = None, None
    if logged is not None:
        if "rings" in scheme:
            replay.machine.vmm.use_dirty_ring(RING)
        replay.machine.vmm.start_dirty_log(0)
        if len(replay.cpus.machines) > 1:
            missed, stored = 0, replay.note_stores()
    while (chunk := (yield False)) is not None:
        replay.feed(chunk)
        over_time.note()
        if logged is not None:
            log = replay.machine.vmm.dirty_log(0)
            logged += int(log.sum())
            if stored is not None and missed is not None:
                missed += int((stored.view(bool) & ~log).sum())
                stored[:] = 0
    found = replay.result()
    over_time.tell(scheme, found, complete=True)
    return Ran(scheme, found, replay.counters(), logged, missed=missed)
