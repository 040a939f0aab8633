"""A recording against this machine, phase by phase."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import sequence
from .apic import ApicPhase
from .exits import difference
from .guest import Guest, Phase
from .recorded import Recording
from .specified import SpecifiedGuest

__all__ = ["Verdict", "compare", "description"]

Runs = list[list[int]]
GAUGES = ("pages_4k", "pages_2m", "pages_1g", "mmu_unsync")


# Of Vmm.stats: no statistic of KVM's is behind these.
OURS_ALONE = {"dirty_pages", "pml_full", "shadow_bytes"}


@dataclass(frozen=True)
class Verdict:
    """One phase of one configuration. dirty: pages of the log, and runs of [first page, pages]; None: not fetched."""

    configuration: str
    phase: str
    real: dict[str, int]
    ours: dict[str, int]
    real_dirty: tuple[int, Runs] | None
    our_dirty: tuple[int, Runs] | None
    real_pages: tuple[int, ...]  # mapped at the end: 4K, 2M, 1G, unsync
    our_pages: tuple[int, ...]
    order_equal: bool = True  # exits and injections in the same order, where the guest is one that notes them
    interrupts_equal: bool = True
    difference: str = ""
    statistics: dict[str, tuple[int, int]] = field(default_factory=dict)  # that differ: KVM's own, and ours
    compared: int = 0  # statistics that were
    details: dict[str, tuple[int, int]] = field(default_factory=dict)  # qualifications and error codes that differ
    not_modelled: tuple[str, ...] = ()  # "parameter=value" each, for which the machine has no such thing: nothing ran
    parity: bool = True  # with a policy in Python that notes every exit and leaves it to the default: the same

    @property
    def equal(self) -> bool:
        same = (
            not self.not_modelled and self.real == self.ours and self.real_dirty == self.our_dirty and self.pages_equal
        )
        same = same and not self.statistics and not self.details
        return same and self.order_equal and self.interrupts_equal and self.parity

    @property
    def pages_equal(self) -> bool:
        return self.real_pages == self.our_pages


def description(guest: str, directory: Path | None = None) -> ModuleType | None:
    """The module that describes a guest, `guest_<x>.py` in a directory of recordings or here; None: there is none.

    One that lies with its recordings imports this package as `tests.agreement`.
    """
    module = f"guest_{guest.lower()}"
    if directory is not None and (directory / f"{module}.py").is_file():
        return _beside(directory / f"{module}.py")
    name = f"{__package__}.{module}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _beside(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recorded_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(
    recording: Recording, name: str, guest: ModuleType, specified: bool = False, vmm: str = "kernel"
) -> Iterator[Verdict]:
    """Run the guest in one configuration and set each phase beside the recorded one.

    specified: on the executable specification instead of the machine. The machine runs twice, with the handlers of the
    kernel layer, and with a policy in Python that sees each exit before them. vmm: `Config.vmm`.
    """
    setting = recording.setting(name)
    if setting.not_modelled:
        for phase in sorted(recording.results[name], key=int):
            real = recording.exits(name, phase)
            yield Verdict(name, phase, real, {}, None, None, (), (), not_modelled=setting.not_modelled)
        return
    kind = getattr(guest, "Guest", Guest)
    runs: list[list[Phase]] = []
    if specified:
        runs = [run(SpecifiedGuest(guest.LAYOUT, setting.config, setting.slots), guest)] * 2
    else:
        config = setting.config.replace(vmm=vmm)
        runs = [run(kind(guest.LAYOUT, config, noting=noting), guest) for noting in (False, True)]
    phases = sorted(recording.results[name], key=int)
    nothing = Phase({})
    for phase, plain, noted in itertools.zip_longest(phases, *runs, fillvalue=nothing):
        if phase is nothing:
            return
        real = recording.results[name][phase]
        exits = recording.ours(plain.exits)
        theirs = recording.statistics(name, phase)
        ours = recording.our_statistics(noted.statistics, exits) if theirs is not None else {}
        ours = {key: ours[key] for key in ours.keys() - OURS_ALONE - kind.unlike}
        yield Verdict(
            configuration=name,
            phase=phase,
            real=recording.exits(name, phase),
            ours=exits,
            real_dirty=_recorded_log(real.get("dirty_log_after_phase")),
            our_dirty=_log(plain.dirty),
            real_pages=_gauges(real, plain),
            our_pages=(*plain.pages, plain.unsync),
            statistics={key: (theirs.get(key, 0), n) for key, n in ours.items() if theirs and theirs.get(key, 0) != n},
            compared=len(ours),
            details={} if isinstance(noted, ApicPhase) else difference(recording, name, real, noted.noted),
            parity=same(plain, noted),
            **_order(recording, name, real, noted, guest.LAYOUT.code),
        )


def run(runner: Guest, guest: ModuleType) -> list[Phase]:
    guest.run(runner)
    return runner.phases


def same(one: Phase, other: Phase) -> bool:
    """The same exits, log, pages and statistics; what only a policy can note left out."""
    logs = np.array_equal(*(np.zeros(0) if phase.dirty is None else phase.dirty for phase in (one, other)))
    left = {key: n for key, n in one.statistics.items() if other.statistics.get(key) != n}
    return one.exits == other.exits and logs and one.pages == other.pages and not left.keys() - {"irq_injections"}


def _gauges(real: dict[str, Any], ours: Phase) -> tuple[int, ...]:
    """As recorded; a KVM without these statistics leaves them out, then nothing is to be compared."""
    recorded = real["gauges_after"]
    return tuple(recorded[gauge] for gauge in GAUGES) if recorded else (*ours.pages, ours.unsync)


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
