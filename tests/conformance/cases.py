"""One question to an implementation of translation, in neutral words, and what an implementation must answer.

Registers and EPT are described with the specification's own plain classes (`State`, `Ept`), which hold values and no
behaviour of a walk. An implementation takes part through an :class:`Adapter`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from fastmmu import reference as ref

__all__ = ["Adapter", "Case", "EptpCase", "GpaCase", "Observed", "PdpteCase", "WalkCase"]

Observed = dict[str, Any]
"""What was seen: `k` is ``ok``, ``pf``, ``gp``, ``ev`` (exit 48), ``em`` (49), ``spp`` (66), ``pml`` (62), ``npf`` (of
AMD) or ``bus``.

ok: pa, gpa, gps and eps (page sizes in bytes, 0 = none), us, rw, xd, mt (effective type), emt, ipat; pf: ec, cr2;
npf: q (EXITINFO1), gpa; ev: q, gpa, sve (1: it can't become #VE) and, if qualification bit 7, gla; em: gpa; pml, spp:
q; bus: hpa. Always: `ch` (dict of changed qwords), `steps` (list of (kind, level, guest level, hpa, gpa, entry)) and,
while the log is on, pmli (PML index afterwards).
`unreported`, where present, is a set of fields that this answer does not have although the implementation reports them
otherwise; `moved` says that the case was asked with its host tables at other addresses, and the answer put back.
"""


@dataclass(frozen=True, kw_only=True)
class WalkCase:
    """Translate linear address `la`. `mem`: qwords by host physical address; all others are 0 up to `nbytes`."""

    mem: dict[int, int] = field(repr=False)
    state: ref.State
    la: int
    access: str
    ept: ref.Ept | ref.Npt | None = None
    nbytes: int = 1 << 52
    write: bool = True


@dataclass(frozen=True, kw_only=True)
class GpaCase:
    """Translate a guest-physical address for the reference `why`."""

    mem: dict[int, int] = field(repr=False)
    ept: ref.Ept | ref.Npt
    gpa: int
    why: ref.GpaReference
    nbytes: int = 1 << 52


@dataclass(frozen=True, kw_only=True)
class PdpteCase:
    """Load the four PDPTE registers from `cr3`; `ok` carries them as `pdpte`."""

    mem: dict[int, int] = field(repr=False)
    cr3: int
    maxphyaddr: int
    ept: ref.Ept | None = None
    nbytes: int = 1 << 52


@dataclass(frozen=True, kw_only=True)
class EptpCase:
    """Is the EPTP valid? The answer is `valid`, 0 or 1."""

    eptp: int
    caps: int
    maxphyaddr: int


Case = WalkCase | GpaCase | PdpteCase | EptpCase


class Adapter(Protocol):
    """One implementation. `run` answers, or says in a few words why it cannot take the case.

    `unreported` names the fields that it never reports; reports of a comparison list them.
    """

    name: str
    unreported: frozenset[str]

    def run(self, case: Case) -> Observed | str: ...
