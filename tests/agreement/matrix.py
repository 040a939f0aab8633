"""Every combination of KVM's parameters that guest A could be recorded with: the machine against the specification.

Names are those of :mod:`.configurations`; only combinations that KVM allows: PML needs A/D flags, splitting ahead is
the TDP MMU's. The specification knows neither VPID nor unrestricted guest, so that one run of it serves several names.
Guest C has no specification: it runs with the handlers of the kernel layer and with a policy in Python.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from .apic import ApicGuest
from .compare import run, same
from .configurations import BACKINGS, Configuration, configuration
from .guest import Guest, Phase
from .specified import SpecifiedGuest

__all__ = ["combinations", "compared", "different"]

SWITCHES = ("nxhp", "nommio", "noapicv", "novpid")
FLAGS = ((), ("nopml",), ("noad",))  # of EPT


def combinations(guest: str) -> Iterator[tuple[str, str]]:
    """(vendor, name) of each."""
    for modules, backing in itertools.product(("eptY", "eptN", "shadow", "nptY", "nptN"), BACKINGS):
        intel = modules.startswith("ept") or modules == "shadow"
        flags = FLAGS if modules.startswith("ept") else ((),)
        eager = ((), ("noeager",)) if modules.endswith("Y") else ((),)
        kinds = _switches(SWITCHES if intel else SWITCHES[:2])
        if guest == "C":
            kinds = [(*k, way) for k in _switches(("nxhp", "nommio", "novpid")) for way in ("", "noflex", "noapicv")]
            kinds += [(*k, "notprshadow") for k in _switches(("novpid",))]
            if not intel:
                continue
        for parts in itertools.product(flags, eager, kinds):
            name = "_".join(part for part in (modules, *itertools.chain(*parts), backing) if part)
            yield ("intel" if intel else "amd"), name
            if modules == "shadow" and guest != "C" and not {"noapicv", "novpid"} & {*itertools.chain(*parts)}:
                yield "amd", name


def _switches(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [
        tuple(name for name, on in zip(names, chosen, strict=True) if on)
        for chosen in itertools.product((False, True), repeat=len(names))
    ]


def compared(vendor: str, name: str, guest: ModuleType) -> Iterator[tuple[int, str]]:
    """(number of a phase, what differs in it) for a combination; "": nothing does."""
    # a processor that checks updates of the guest's A and D flags against EPT W, as real ones do
    setting = configuration(name, vendor, emulator="")
    if issubclass(guest.Guest, ApicGuest):
        plain, noted = (
            run(guest.Guest(guest.LAYOUT, setting.config, noting=noting), guest) for noting in (False, True)
        )
        specified = noted
    else:
        plain, noted = (run(Guest(guest.LAYOUT, setting.config, noting=on), guest) for on in (False, True))
        specified = _specified(_as_specified(setting), guest)
    for number, (one, other, want) in enumerate(zip(plain, noted, specified, strict=True)):
        found = different(other, want)
        if not same(one, other):
            found["with and without a policy in Python"] = (one, other)
        yield number, ", ".join(f"{what}: {ours} is specified as {theirs}" for what, (ours, theirs) in found.items())


def _as_specified(setting: Configuration) -> Configuration:
    """Without what the specification does not know."""
    config = setting.config.replace(vpid=False, unrestricted_guest=True)
    if config.mmu == "shadow" or not config.tdp_mmu:
        config = config.replace(tdp_mmu=False, eager_page_split=True)
    return Configuration(config, setting.slots)


@cache
def _specified(setting: Configuration, guest: ModuleType) -> list[Phase]:
    return run(SpecifiedGuest(guest.LAYOUT, setting.config, setting.slots), guest)


def different(ours: Phase, theirs: Phase) -> dict[str, tuple[Any, Any]]:
    """{what: (of the machine, as specified)}; statistics that both have."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in ours.exits.keys() | theirs.exits.keys():
        _put(found, name.name, ours.exits.get(name, 0), theirs.exits.get(name, 0))
    for name in ours.statistics.keys() & theirs.statistics.keys():
        _put(found, name, ours.statistics[name], theirs.statistics[name])
    for exit in ours.noted.keys() | theirs.noted.keys():
        _put(found, str(exit), ours.noted[exit], theirs.noted[exit])
    _put(found, "pages", (*ours.pages, ours.unsync), (*theirs.pages, theirs.unsync))
    logs = [None if phase.dirty is None else np.flatnonzero(phase.dirty).tolist() for phase in (ours, theirs)]
    _put(found, "dirty log", *logs)
    return found


def _put(found: dict[str, tuple[Any, Any]], name: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        found[name] = (ours, theirs)
