"""What a whole Linux does to each scheme: a system trace replayed in all of them, VM exits side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.replay import Replay, Replayed
from fastmmu.trace.system import SystemTrace

__all__ = ["SCHEMES", "Ran", "replay_schemes"]

SCHEMES: dict[str, dict[str, Any]] = {
    "native": {},
    "shadow, always in sync": {"mmu": "shadow", "vpid": True, "shadow_keys": True},
    "shadow, Linux 6.1": {"mmu": "shadow", "vpid": True, "kvm": "6.1", "shadow_keys": True},
    "EPT, older MMU": {"mmu": "ept", "vpid": True, "kvm": "6.1", "tdp_mmu": False},
    "EPT": {"mmu": "ept", "vpid": True, "kvm": "6.1"},
    "EPT, no A/D flags": {"mmu": "ept", "vpid": True, "kvm": "6.1", "ept_ad": False},
    "EPT, no VPID": {"mmu": "ept", "kvm": "6.1"},
    "EPT, 2 MB pages": {"mmu": "ept", "vpid": True, "kvm": "6.1", "host_pages": "2m"},
    "EPT, logged": {"mmu": "ept", "vpid": True, "kvm": "6.1"},
    "EPT, logged by PML": {"mmu": "ept", "vpid": True, "kvm": "6.1", "pml": True},
}
"""Name of a scheme → the fields of :class:`Config` that make it; of those logged the dirty log is read."""


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
        if scheme not in SCHEMES:
            raise ConfigError(f"no scheme {scheme!r}; there are {', '.join(SCHEMES)}")
        try:
            replay = Replay(trace, Config(**{**config, **SCHEMES[scheme]}))
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
