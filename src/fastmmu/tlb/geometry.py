"""Geometry of TLBs: how many entries, in how many ways, for which page sizes (tlb.md §9).

``geometry("skylake", l1d="64/4", stlb="1536/12")`` gives a preset with some arrays replaced. An array is written
"entries/ways", or "entries/fa" (also "entries fa") where it is fully associative; arrays by page size are written
"64/4 + 2m 32/4 + 1g 4/fa".

=============  ==========================================================================================
preset         first level (I; D), second level; paging-structure caches PML4E/PDPTE/PDE
=============  ==========================================================================================
core2          I 128/4 + 2M 8 fa; D 16/4 + 2M 16/4; data only: 256/4 + 2M 32/4; 0/4/16
nehalem        I 128/4 + 2M 7 fa; D 64/4 + 2M 32/4; 512/4 (4K only); 2/4/32
sandybridge    I 128/4 + 2M 8 fa; D 64/4 + 2M 32/4 + 1G 4 fa; 512/4 (4K only); 2/4/32
haswell        as sandybridge, 1G 4/4; 1024/8 (4K, 2M); 2/4/32
broadwell      as haswell; 1536/6 (4K, 2M) + 1G 16/4; 2/4/32
skylake        I 128/8 + 2M 8 fa; D 64/4 + 2M 32/4 + 1G 4/4; 1536/12 (4K, 2M) + 1G 16/4; 2/4/32
icelake        I 128/8 + 2M 16 fa; loads 64/4 + 2M 32/4 + 1G 8 fa, stores 16 fa (all); 2048/16, of whose ways
               2M may hold 8 and 1G may hold 8; 2/4/32
zen1           I 64 fa (all) + 512/8; D 64 fa (all) + 1536/12; 1G cached as 2M in the second level; 64 fa
zen2, zen3     I 64 fa (all) + 512/8; D 64 fa (all) + 2048/16; 1G as 2M; 64 fa
zen4           I 64 fa (all) + 512/8; D 72 fa (all) + 3072/24; 1G as 2M; 64 fa
strict         no processor: keeps everything that the architecture lets it keep, and forgets what it must
=============  ==========================================================================================

The hyperthreads of a core share the second level and the paging-structure caches: of the former the vendors say so.

Sources: the vendors' optimization manuals as quoted in public, WikiChip, CPUID leaf 2 descriptors. Unverified: every
size of a paging-structure cache (the vendors publish none; Intel's are estimates of the literature), the same sizes
taken for the walks of EPT tables, the 64 entries of guest-physical mappings (``gpm="shared"`` puts them into the
second level, where they displace others), core2's and nehalem's large-page arrays, the page sizes of AMD's second
level for instructions, that hyperthreads share caches of tables. True LRU is a choice, too; real second levels
approximate it.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal

import msgspec

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.tlb.arrays import (
    PAGES,
    REPLACEMENTS,
    SHARES,
    TABLES,
    Array,
    check_unit,
    choice,
    parse_array,
    replacement_of,
    shares_of,
    unit_of,
)  # fmt: skip
from fastmmu.tlb.extensions import Extension, parse_extensions

__all__ = [
    "PAGES", "PRESETS", "REPLACEMENTS", "SHARES", "TABLES", "Array", "Geometry", "geometry", "parse_array",
]  # fmt: skip


class Geometry(msgspec.Struct, frozen=True, kw_only=True):
    """The arrays of one physical CPU.

    A first level that lacks a page size caches such pages in pieces of the next smaller size it has; a second level
    that lacks it does not cache them, or in pieces where `smash` is set.

    :param l1i, l1d, l1s: first level of fetches, loads, stores; `l1s` empty: stores use `l1d`.
    :param l2, l2i: second level, and that of fetches where they have their own; empty: none.
    :param l2_fetches: fetches use `l2` where there is no `l2i`.
    :param psc, epsc: paging-structure caches of guest (or native) tables and of EPT tables.
    :param gpm: guest-physical mappings live in the second level ("shared"), in an array of their own, or nowhere.
    :param replacement: policy of first and second level; that of the other arrays is LRU.
    :param unbounded: no entry makes room for another, the arrays grow: entries go by invalidation alone.
    :param shared: what the hyperthreads of a core share, of :data:`SHARES`; of use where a core has several.
    :param extension: what is asked between a miss of both levels and the walk: text as "clustered:8+prefetch:distance",
        see :mod:`fastmmu.tlb.extensions`. A TLB with one is of a core without hyperthreads.

    Threads: immutable; share it.
    """

    name: str
    l1i: tuple[Array, ...]
    l1d: tuple[Array, ...]
    l1s: tuple[Array, ...] = ()
    l2: tuple[Array, ...] = ()
    l2i: tuple[Array, ...] = ()
    l2_fetches: bool = True
    smash: bool = False
    psc: tuple[Array, ...] = ()
    epsc: tuple[Array, ...] = ()
    gpm: Literal["shared", "off"] | Array = "off"
    replacement: tuple[str, str] = ("lru", "lru")
    unbounded: bool = False
    shared: tuple[str, ...] = ("l2", "psc")
    extension: tuple[Extension, ...] = ()

    def __str__(self) -> str:
        """All arrays in a line, the name aside: equal for geometries that act alike."""
        gpm = self.gpm if isinstance(self.gpm, str) else self.gpm.described()
        units = {"L1I": self.l1i, "L1D": self.l1d, "stores": self.l1s, "L2": self.l2, "L2I": self.l2i, "PSC": self.psc,
                 "EPSC": self.epsc}  # fmt: skip
        parts = [f"{unit} {', '.join(a.described() for a in arrays)}" for unit, arrays in units.items() if arrays]
        parts += [f"GPM {gpm}", ", ".join(dict.fromkeys(self.replacement))]
        if self.l2 and not self.l2i and not self.l2_fetches:
            parts.append("L2 for data alone")
        if self.shared != ("l2", "psc"):
            parts.append(f"hyperthreads share {', '.join(self.shared) or 'nothing'}")
        if self.extension:
            parts.append(f"beyond it {' + '.join(str(one) for one in self.extension)}")
        parts += ["pages in pieces"] * self.smash + ["unbounded"] * self.unbounded
        return "; ".join(parts)

    def __post_init__(self) -> None:
        for unit in ("l1i", "l1d", "l1s", "l2", "l2i", "psc", "epsc"):
            msgspec.structs.force_setattr(self, unit, unit_of(getattr(self, unit), unit))
        policies: Any = self.replacement
        both = tuple(policies) if isinstance(policies, (tuple, list)) else (policies,) * 2
        msgspec.structs.force_setattr(self, "replacement", both)
        if len(both) != 2:
            raise ConfigError(f"TLB {self.name!r}: replacement {policies!r}: choose {choice()}, for each level one")
        for policy in both:
            replacement_of(policy)
        if not isinstance(self.gpm, Array) and self.gpm not in ("shared", "off"):
            raise ConfigError(f"TLB {self.name!r}: gpm={self.gpm!r}: give 'shared', 'off' or an Array")
        if self.gpm == "shared" and not self.l2:
            raise ConfigError(f"TLB {self.name!r}: gpm='shared' lives in a second level, and there is none; give 'off'")
        for level, units in enumerate(((self.l1i, self.l1d, self.l1s), (self.l2, self.l2i))):
            for arrays in units:
                check_unit(self.name, arrays, self.replacement[level], first=level == 0)
        for arrays in (self.psc, self.epsc):
            check_unit(self.name, arrays, "lru", first=False, sizes=TABLES)
        if isinstance(self.gpm, Array):
            check_unit(self.name, (self.gpm,), "lru", first=False)
        msgspec.structs.force_setattr(self, "shared", shares_of(self.shared))
        msgspec.structs.force_setattr(self, "extension", parse_extensions(self.extension))
        if self.unbounded and self.replacement != ("lru", "lru"):
            raise ConfigError(f"TLB {self.name!r}: nothing is replaced where arrays grow; leave replacement at lru")
        if not self.l1i or not self.l1d:
            raise ConfigError(f"TLB {self.name!r}: a first level without arrays; give l1i and l1d one of 4k each")


def _a(text: str, *sizes: str, quota: tuple[int, ...] | None = None) -> Array:
    array = parse_array(text, sizes=sizes or ("4k",))
    return msgspec.structs.replace(array, quota=quota)


def _intel_psc(pml4e: int, pdpte: int, pde: int, pml5e: int = 0) -> tuple[Array, ...]:
    sizes = (("pml5e", pml5e), ("pml4e", pml4e), ("pdpte", pdpte), ("pde", pde))
    return tuple(Array(entries, entries, (name,)) for name, entries in sizes if entries)


def _intel(
    name: str, l1i: tuple[Array, ...], l1d: tuple[Array, ...], *l2: Array, l1s: tuple[Array, ...] = ()
) -> Geometry:
    psc = _intel_psc(2, 4, 32)
    return Geometry(name=name, l1i=l1i, l1d=l1d, l1s=l1s, l2=l2, psc=psc, epsc=psc, gpm=_a("64/fa", *PAGES))


def _amd(name: str, l1d: str, l2: str) -> Geometry:
    psc = (_a("64/fa", *TABLES),)
    return Geometry(
        name=name,
        l1i=(_a("64/fa", *PAGES),),
        l1d=(_a(l1d, *PAGES),),
        l2=(_a(l2, "4k", "2m"),),
        l2i=(_a("512/8", "4k", "2m"),),
        smash=True,
        psc=psc,
        epsc=psc,
        gpm=_a("64/fa", *PAGES),
    )


_D = (_a("64/4"), _a("32/4", "2m"))

PRESETS: dict[str, Geometry] = {
    g.name: g
    for g in (
        Geometry(
            name="core2",  # neither EPT nor VPID: no cache of guest-physical mappings
            l1i=(_a("128/4"), _a("8/fa", "2m")),
            l1d=(_a("16/4"), _a("16/4", "2m")),
            l2=(_a("256/4"), _a("32/4", "2m")),
            l2_fetches=False,
            psc=_intel_psc(0, 4, 16),
        ),
        _intel("nehalem", (_a("128/4"), _a("7/fa", "2m")), _D, _a("512/4")),
        _intel("sandybridge", (_a("128/4"), _a("8/fa", "2m")), (*_D, _a("4/fa", "1g")), _a("512/4")),
        _intel("haswell", (_a("128/4"), _a("8/fa", "2m")), (*_D, _a("4/4", "1g")), _a("1024/8", "4k", "2m")),
        _intel(
            "broadwell",
            (_a("128/4"), _a("8/fa", "2m")),
            (*_D, _a("4/4", "1g")),
            _a("1536/6", "4k", "2m"),
            _a("16/4", "1g"),
        ),
        _intel(
            "skylake",
            (_a("128/8"), _a("8/fa", "2m")),
            (*_D, _a("4/4", "1g")),
            _a("1536/12", "4k", "2m"),
            _a("16/4", "1g"),
        ),
        _intel(
            "icelake",
            (_a("128/8"), _a("16/fa", "2m")),
            (*_D, _a("8/fa", "1g")),
            _a("2048/16", *PAGES, quota=(16, 8, 8)),
            l1s=(_a("16/fa", *PAGES),),
        ),
        _amd("zen1", "64/fa", "1536/12"),
        _amd("zen2", "64/fa", "2048/16"),
        _amd("zen3", "64/fa", "2048/16"),
        _amd("zen4", "72/fa", "3072/24"),
        Geometry(
            name="strict",
            l1i=(_a("1024/16", *PAGES),),
            l1d=(_a("1024/16", *PAGES),),
            l2=(_a("1024/16", *PAGES),),
            psc=(_a("256/16", *TABLES),),
            epsc=(_a("256/16", *TABLES),),
            gpm=_a("1024/16", *PAGES),
            unbounded=True,
        ),
    )
}


def _without(array: Array, size: str) -> tuple[Array, ...]:
    """An array that does not hold `size` any more; none where it held nothing else."""
    left = [i for i, held in enumerate(array.sizes) if held != size]
    quota = None if array.quota is None else tuple(array.quota[i] for i in left)
    return (msgspec.structs.replace(array, sizes=tuple(array.sizes[i] for i in left), quota=quota),) if left else ()


def _replaced(arrays: tuple[Array, ...], text: str, what: str) -> tuple[Array, ...]:
    """Arrays after "64/4 + 2m 32/4": of 4K pages, whose array goes on holding what else it does, and of named sizes."""
    for part in str(text).lower().split("+"):
        size, array = re.match(r"\s*(?:(4k|2m|1g)\b[\s:]*)?(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        if size is None:
            new = parse_array(array, what=what)
            if not any("4k" in one.sizes for one in arrays):
                arrays = (new, *arrays)
            else:
                arrays = tuple(msgspec.structs.replace(new, sizes=a.sizes) if "4k" in a.sizes else a for a in arrays)
        else:
            put = () if array.strip() == "none" else (parse_array(array, what=f"{what} {size}", sizes=(size,)),)
            arrays = (*(left for one in arrays for left in _without(one, size)), *put)
    return arrays


def _psc(arrays: tuple[Array, ...], text: str, what: str) -> tuple[Array, ...]:
    """Paging-structure caches: "2/4/32" for PML4E/PDPTE/PDE, "1/2/4/32" with PML5E in front, "64/fa" for one array of
    all, "none"; "pde 64/4 + pml4e none": those levels alone, the others stay."""
    words = str(text).strip().lower()
    if words == "none":
        return ()
    if match := re.fullmatch(r"(?:(\d+)\s*/\s*)?(\d+)\s*/\s*(\d+)\s*/\s*(\d+)", words):
        pml5e, pml4e, pdpte, pde = (int(entries or 0) for entries in match.groups())
        return _intel_psc(pml4e, pdpte, pde, pml5e)
    parts = [re.fullmatch(r"\s*(pde|pdpte|pml4e|pml5e)\b[\s:]*(.*)", part, re.DOTALL) for part in words.split("+")]
    if all(parts):
        for level, array in (part.groups() for part in parts if part is not None):
            put = () if array.strip() == "none" else (parse_array(array, what=f"{what} {level}", sizes=(level,)),)
            arrays = (*(left for one in arrays for left in _without(one, level)), *put)
        return arrays
    try:
        return (parse_array(words, what=what, sizes=TABLES),)
    except ConfigError as error:
        raise ConfigError(f"{error}; or PML4E/PDPTE/PDE entries, as in 2/4/32; pde 64/4 + pdpte 8/fa; none") from error


@checked
def geometry(
    preset: str | Geometry = "skylake",
    *,
    l1d: str | None = None,
    l1i: str | None = None,
    stlb: str | None = None,
    psc: str | None = None,
    epsc: str | None = None,
    gpm: str | None = None,
    replacement: str | tuple[str, str] | None = None,
    walk_caches: bool = True,
    shared: str | tuple[str, ...] | None = None,
    extension: str | tuple[str, ...] | None = None,
) -> Geometry:
    """A preset with some of its arrays replaced.

    :param preset: name from :data:`PRESETS`, or a geometry.
    :param l1d, l1i, stlb: "entries/ways" of the array that holds 4K pages; it goes on holding whatever else the
        preset's does. Behind a "+" arrays of one page size: "64/4 + 2m 32/4 + 1g 4/fa", also "2m none".
        ``stlb="none"``: no second level.
    :param psc, epsc: paging-structure caches of guest (or native) and of EPT tables: entries of PML4E/PDPTE/PDE as in
        "2/4/32" (four numbers: PML5E in front), one array for all as in "64/fa", or "none"; some levels alone as in
        "pde 64/4 + pml4e none".
    :param gpm: guest-physical mappings: an array such as "64/fa", "shared" (in the second level) or "off".
    :param replacement: a policy of :data:`REPLACEMENTS` for both levels, or one for each, as ("lru", "plru") or
        "lru,srrip": lru, plru (tree-PLRU), random or random:SEED, srrip (SRRIP), chirp (like CHiRP), or one that a
        package has registered (:func:`fastmmu.tlb.policy.register_policy`).
    :param walk_caches: False: no paging-structure caches and no guest-physical mappings but those that `psc`, `epsc`
        and `gpm` give; without any each walk starts at the root.
    :param shared: what the hyperthreads of a core share: words of :data:`SHARES`, as ("l2", "psc") or "l2,psc"; "none".
    :param extension: what is asked between a miss of both levels and the walk, as in "clustered:8+prefetch:distance",
        or "none" (:mod:`fastmmu.tlb.extensions`).
    :raises ConfigError: an unknown preset, an impossible array, an unknown policy.
    """
    if isinstance(preset, Geometry):
        found = preset
    elif str(preset).lower() in PRESETS:
        found = PRESETS[str(preset).lower()]
    else:
        near = difflib.get_close_matches(str(preset).lower(), PRESETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"TLB preset {preset!r} is unknown; {hint}choose from {', '.join(PRESETS)}")
    changes: dict[str, object] = {} if walk_caches else {"psc": (), "epsc": (), "gpm": "off"}
    if l1d is not None:
        changes["l1d"] = _replaced(found.l1d, l1d, "l1d")
    if l1i is not None:
        changes["l1i"] = _replaced(found.l1i, l1i, "l1i")
    if stlb is not None and str(stlb).strip().lower() in ("none", "0"):
        changes |= {"l2": (), "l2i": (), "gpm": "off" if found.gpm == "shared" or not walk_caches else found.gpm}
    elif stlb is not None:
        changes["l2"] = _replaced(found.l2, stlb, "stlb")
    if psc is not None:
        changes["psc"] = _psc(found.psc if walk_caches else (), psc, "psc")
    if epsc is not None:
        changes["epsc"] = _psc(found.epsc if walk_caches else (), epsc, "epsc")
    if gpm is not None:
        word = str(gpm).strip().lower()
        changes["gpm"] = word if word in ("shared", "off") else parse_array(word, what="gpm", sizes=PAGES)
    if replacement is not None:
        both = (
            str(replacement).replace(" ", "").split(",")
            if not isinstance(replacement, (tuple, list))
            else list(replacement)
        )
        if len(both) not in (1, 2):
            raise ConfigError(f"replacement {replacement!r}: choose {choice()}, or one for each level as in lru,plru")
        for policy in both:
            replacement_of(policy)
        changes["replacement"] = (both[0], both[-1])
    if shared is not None:
        changes["shared"] = shared
    if extension is not None:
        changes["extension"] = extension
    return msgspec.structs.replace(found, **changes) if changes else found
