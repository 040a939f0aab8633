"""What a whole Linux does to each scheme: a system trace replayed in all of them, VM exits side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.replay import Replay, Replayed
from fastmmu.study.schemes import REPLAY as SCHEMES
from fastmmu.study.schemes import fields_of
from fastmmu.trace.system import SystemTrace

__all__ = ["SCHEMES", "Ran", "replay_schemes"]


@dataclass(frozen=True)
class Ran:
    """One scheme: what the replay came to, the machine's counters, the VMM's; pages in dirty logs, None if not logged.

    None in place of the first two where the scheme cannot run the guest, and `why`.
    """

    scheme: str
    found: Replayed | None
    counters: dict[str, Any]
    logged: int | None
    why: str = ""


@checked
def replay_schemes(
    trace: SystemTrace,
    schemes: Sequence[str] = tuple(SCHEMES),
    *,
    progress: Callable[[str, float | None, int], None] | None = None,
    **config: Any,
) -> Iterator[Ran]:
    """Replay a system trace in each scheme, one after the other.

    :param config: fields of :class:`Config` for all of them, such as ``tlb``.
    :raises ConfigError: an unknown scheme.
    """
    for scheme in schemes:
        fields = config | fields_of(scheme, SCHEMES)
        try:
            replay = Replay(trace, Config(**fields))
        except ConfigError as error:
            yield Ran(scheme, None, {}, None, str(error))
            continue
        logged = 0 if "logged" in scheme else None
        if logged is not None:
            replay.machine.vmm.start_dirty_log(0)
        for _ in replay.steps():
            if progress is not None:
                progress(scheme, trace.progress(), replay.records)
            if logged is not None:
                logged += int(replay.machine.vmm.dirty_log(0).sum())
        yield Ran(scheme, replay.result(), replay.machine.counters(), logged)
