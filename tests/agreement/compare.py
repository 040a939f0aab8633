"""A recording against this machine, phase by phase."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import sequence
from .apic import ApicGuest, ApicPhase
from .configurations import configuration
from .guest import Guest, Phase
from .recorded import Recording
from .specified import SpecifiedGuest

__all__ = ["Verdict", "compare", "description"]

Runs = list[list[int]]
GAUGES = ("pages_4k", "pages_2m", "pages_1g", "mmu_unsync")


@dataclass(frozen=True)
class Verdict:
    """One phase of one configuration. dirty: pages of the log, and runs of [first page, pages]; None: not fetched."""

    configuration: str
    phase: str
    real: dict[str, int]
    ours: dict[str, int]
    real_dirty: tuple[int, Runs] | None
    our_dirty: tuple[int, Runs] | None
    real_pages: tuple[int, ...]  # mapped at the end: 4K, 2M, 1G, unsync; not part of the verdict
    our_pages: tuple[int, ...]
    order_equal: bool = True  # exits and injections in the same order, where the guest is one that notes them
    interrupts_equal: bool = True
    difference: str = ""
    statistics: dict[str, tuple[int, int]] = field(default_factory=dict)  # that differ: KVM's own, and ours

    @property
    def equal(self) -> bool:
        same = self.real == self.ours and self.real_dirty == self.our_dirty and not self.statistics
        return same and self.order_equal and self.interrupts_equal

    @property
    def pages_equal(self) -> bool:
        return self.real_pages == self.our_pages


def description(guest: str) -> ModuleType | None:
    """The module that describes a guest; None where there is none."""
    name = f"{__package__}.guest_{guest.lower()}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def compare(recording: Recording, name: str, guest: ModuleType, specified: bool = False) -> Iterator[Verdict]:
    """Run the guest in one configuration and set each phase beside the recorded one.

    specified: on the executable specification instead of the machine.
    """
    setting = configuration(name, recording.vendor, recording.parameters.get(name), recording.emulator)
    if issubclass(guest.Guest, ApicGuest):
        runner: Guest = guest.Guest(guest.LAYOUT, setting.apic)
    else:
        runner = (SpecifiedGuest if specified else Guest)(guest.LAYOUT, setting.config, setting.slots)
    guest.run(runner)
    nothing = Phase({})
    statistics = runner.statistics if isinstance(runner, SpecifiedGuest) else []
    for number, phase in enumerate(sorted(recording.results[name], key=int)):
        real = recording.results[name][phase]
        ours = runner.phases[number] if number < len(runner.phases) else nothing
        yield Verdict(
            configuration=name,
            phase=phase,
            real=recording.exits(name, phase),
            ours=recording.ours(ours.exits),
            real_dirty=_recorded_log(real.get("dirty_log_after_phase")),
            our_dirty=_log(ours.dirty),
            real_pages=_gauges(real, ours),
            our_pages=(*ours.pages, ours.unsync),
            # those of phase 0 began when the virtual machine had run already
            statistics=_statistics(real, statistics[number] if 0 < number < len(statistics) else {}),
            **_order(recording, name, real, ours, guest.LAYOUT.code),
        )


def _gauges(real: dict[str, Any], ours: Phase) -> tuple[int, ...]:
    """As recorded; a KVM without these statistics leaves them out, then nothing is to be compared."""
    recorded = real["gauges_after"]
    return tuple(recorded[gauge] for gauge in GAUGES) if recorded else (*ours.pages, ours.unsync)


def _statistics(real: dict[str, Any], ours: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Those that differ: (KVM's, ours)."""
    theirs = real.get("stat_deltas", ours)
    return {name: (theirs.get(name, 0), n) for name, n in ours.items() if theirs.get(name, 0) != n}


def _order(recording: Recording, name: str, real: dict[str, Any], ours: Phase, code: int) -> dict[str, Any]:
    if not isinstance(ours, ApicPhase):
        return {}
    theirs, our = sequence.recorded(real), sequence.ours(ours.sequence, recording, name)
    interrupts = sequence.recorded_interrupts(real)
    same = sequence.alike(theirs, our, code)
    return {
        "order_equal": same,
        "interrupts_equal": interrupts == ours.interrupts,
        "difference": "" if same else f"order: KVM {_shown(theirs)} ours {_shown(our)}",
    }


def _shown(entries: list[tuple[str, int]]) -> str:
    return " ".join(f"{name}:{detail:#x}" for name, detail in entries[:40])


def _recorded_log(log: dict[str, Any] | None) -> tuple[int, Runs] | None:
    return None if log is None else (log["count"], log["gfn_runs"])


def _log(log: npt.NDArray[np.bool_] | None) -> tuple[int, Runs] | None:
    if log is None:
        return None
    pages = np.flatnonzero(log)
    if not len(pages):
        return 0, []
    starts = np.flatnonzero(np.diff(pages, prepend=pages[0] - 2) != 1)
    lengths = np.diff(np.append(starts, len(pages)))
    return len(pages), [[int(first), int(n)] for first, n in zip(pages[starts], lengths, strict=True)]
