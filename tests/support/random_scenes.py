"""Random small page tables, guest and EPT, in which every fault has a fair chance.

A scene starts out whole: a path of well-formed entries for a few linear addresses, and EPT under every page that the
path needs. Then a few named defects are put in. Rights, flags and registers vary freely, so permission faults need no
defect. A failing example prints the names of its defects.

All chance comes from one function, `pick(sequence)`: :func:`scenes` drives it from Hypothesis (and shrinks),
:func:`random_scene` from `random.Random` for long runs outside a test.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

from fastmmu import reference as ref
from fastmmu.reference.paging import guest
from tests.conformance.cases import WalkCase
from tests.support.scene_defects import EPT_DEFECTS, FRAMES, GUEST_DEFECTS, HIGH_FRAME, NPT_DEFECTS

__all__ = ["FRAMES", "Scene", "random_scene", "scenes"]

T = TypeVar("T")
MEMORY = FRAMES << 12
SPP_FRAMES = (4, 5, 6, 7)
ACCESSES = ("r", "w", "rw", "x")


class Pick(Protocol):
    def __call__(self, sequence: Sequence[T], /) -> T: ...


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Memory, registers and EPT, and the linear addresses and accesses to try on them."""

    mem: dict[int, int] = field(repr=False)
    state: ref.State
    ept: ref.Ept | ref.Npt | None
    attempts: tuple[tuple[int, str], ...]  # (linear address, access)
    defects: tuple[str, ...]

    def cases(self, *, write: bool = True) -> list[WalkCase]:
        """Each attempt on the scene as it was at first."""
        return [
            WalkCase(mem=self.mem, state=self.state, la=la, access=access, ept=self.ept, nbytes=MEMORY, write=write)
            for la, access in self.attempts
        ]


# ---- registers -----------------------------------------------------------------------------------------------

MODES = {
    ref.Mode.NONE: {"cr0": 0x31, "cr4": 0, "efer": 0},
    ref.Mode.LEGACY32: {"cr0": 0x8000_0031, "cr4": 0x10, "efer": 0},
    ref.Mode.PAE: {"cr0": 0x8000_0031, "cr4": 0x20, "efer": 0},
    ref.Mode.LEVEL4: {"cr0": 0x8000_0031, "cr4": 0x20, "efer": 0x500},
    ref.Mode.LEVEL5: {"cr0": 0x8000_0031, "cr4": 0x1020, "efer": 0x500},
}
WP, NXE = 1 << 16, 1 << 11
PSE, PGE, SMEP, SMAP, PKE, PKS = 1 << 4, 1 << 7, 1 << 20, 1 << 21, 1 << 22, 1 << 24


def _state(pick: Pick, modes: Sequence[ref.Mode]) -> ref.State:
    registers: dict[str, int] = dict(MODES[pick(modes)])
    registers["cr0"] |= pick((WP, 0))
    registers["efer"] |= pick((NXE, NXE, 0))
    for bit in (PGE, SMEP, SMAP, PKE, PKS):
        registers["cr4"] |= pick((0, 0, bit))
    if not registers["cr4"] & 0x20:
        registers["cr4"] ^= pick((0, 0, 0, PSE))
    registers["cpl"] = pick((0, 3, 3, 2))
    registers["ac"], registers["implicit"] = pick((0, 1)), pick((0, 0, 0, 1))
    registers["pkru"], registers["pkrs"] = pick((0, 0x4, 0x8, 0xC0)), pick((0, 0x4, 0x8, 0xC0))
    registers["maxphyaddr"] = pick((46, 36, 40, 52))
    registers["gb_pages"] = pick((1, 1, 1, 0))
    return ref.State(**registers, upper_a=pick(("eager", "lazy")))  # type: ignore[arg-type]


def _ept(pick: Pick, maxphyaddr: int) -> ref.Ept:
    caps = ref.EptCap.ALL
    for cap in (ref.EptCap.EXECUTE_ONLY, ref.EptCap.ADVANCED_INFO, ref.EptCap.PAGE_1G):
        caps &= ~pick((0, 0, cap))
    levels, ad = pick((4, 4, 5)), pick((0, 1))
    pml = (pick((2, 3)) << 12, pick((511, 300, 3, 1, 0, 512, 0xFFFF))) if ad and pick((0, 0, 1)) else None
    return ref.Ept(
        eptp=1 << 12 | ad << 6 | (levels - 1) << 3 | pick((6, 0)),
        caps=caps,
        maxphyaddr=maxphyaddr,
        mbec=pick((0, 0, 1)),
        pml=pml,
        spptp=pick((None, None, SPP_FRAMES[0] << 12)),
        guest_ad_before_final_ept=pick((True, True, False)),
        guest_ad_checked=pick((True, True, False)),
    )


def _npt(pick: Pick, maxphyaddr: int) -> ref.Npt:
    return ref.Npt(
        ncr3=1 << 12 | pick((0, 0x18)),
        levels=pick((4, 4, 5)),
        maxphyaddr=maxphyaddr,
        nxe=pick((1, 1, 0)),
        gb_pages=pick((1, 1, 0)),
        pat=pick((0x0007_0406_0007_0406, 0x0001_0504_0007_0406)),
        guest_ad_before_final_ept=pick((True, True, False)),
    )


# ---- tables --------------------------------------------------------------------------------------------------


class _World:
    """Memory under construction. Frame 0 stays free, 1 is the EPT root, 2 and 3 take the log, SPP_FRAMES the tables of
    sub-page permissions (one a level); the rest is handed out.

    A guest page at host frame h gets a guest-physical address that is h modulo 2 MiB (or 1 GiB), so that it can be
    mapped by a 4 KiB leaf or by a large leaf at host address 0.
    """

    def __init__(self, pick: Pick, state: ref.State, ept: ref.Ept | ref.Npt | None) -> None:
        self.pick, self.state, self.ept = pick, state, ept
        self.mem: dict[int, int] = {}
        self.defects: list[str] = []
        self.next_frame = SPP_FRAMES[-1] + 1
        self.entries: list[tuple[str, int, int, int]] = []  # (guest|ept, level, host address, bytes) of each entry
        self.gpa_of: dict[int, int] = {}  # host address of a guest table -> its gpa
        self.tables: dict[int, int] = {}  # host address of a guest entry -> that of the table it points at
        self.pdpt = (0, 0)  # (gpa, hpa) of the PDPTEs where they stay in memory
        self.roots: dict[int, tuple[int, int]] = {}  # (gpa, hpa) of the top tables; for PAE by PDPTE register

    def frame(self) -> int:
        self.next_frame += 1
        return self.next_frame - 1

    def get(self, hpa: int, size: int) -> int:
        return self.mem.get(hpa & ~7, 0) >> (8 * (hpa & 4)) & (1 << 8 * size) - 1

    def put(self, hpa: int, size: int, value: int) -> None:
        shift = 8 * (hpa & 4)
        self.mem[hpa & ~7] = self.mem.get(hpa & ~7, 0) & ~(((1 << 8 * size) - 1) << shift) | value << shift

    # guest

    def guest_page(self) -> tuple[int, int]:
        """(gpa, hpa) of a fresh page for a guest table, with EPT under it."""
        hpa = self.frame() << 12
        if self.ept is None:
            return hpa, hpa
        gpa = hpa | self.pick((0, 0, 1 << 21, 5 << 21, 1 << 30))
        self.map_gpa(gpa, hpa, writable=self.pick((True, True, True, False)))
        self.gpa_of[hpa] = gpa
        return gpa, hpa

    def guest_flags(self, *, leaf: bool) -> int:
        flags = 1 | self.pick((2, 2, 2, 0)) | self.pick((4, 4, 4, 0)) | self.pick((0x20, 0)) | self.pick((0, 0x18))
        if leaf:
            flags |= self.pick((0, 0x40)) | self.pick((0, 0x100))
        if self.state.xd_enabled:
            flags |= self.pick((0, 0, 0, 1 << 63))
        if leaf and self.state.lma:
            flags |= self.pick((0, 1, 3, 15)) << 59
        if self.state.lma and not leaf:
            flags |= self.pick((0, 1 << 52, 0x400 << 52))
        return flags

    def guest_path(self, la: int, leaf_level: int) -> None:
        """Entries for `la` down to `leaf_level`; what is there already stays."""
        state, size = self.state, guest.entry_size(self.state)
        root = la >> 30 if state.mode is ref.Mode.PAE else 0
        if root not in self.roots:
            self.roots[root] = self.guest_page()
        hpa = self.roots[root][1]
        for level in range(state.levels, leaf_level - 1, -1):
            here = hpa + size * guest.index_of(state, la, level)
            if here in self.tables:
                hpa = self.tables[here]
                continue
            if self.get(here, size) & guest.PRESENT:
                return
            self.entries.append(("guest", level, here, size))
            if level == leaf_level:
                self.put(here, size, self.guest_leaf(level))
            else:
                gpa, hpa = self.guest_page()
                self.tables[here] = hpa
                self.put(here, size, gpa | self.guest_flags(leaf=False))

    def guest_leaf(self, level: int) -> int:
        shift = guest.page_shift(self.state, level)
        if self.ept is None:
            address = self.pick((self.pick(range(FRAMES)), HIGH_FRAME)) << 12
        else:
            frame = self.frame()
            address = frame << 12 | self.pick((0, 0, 3 << 21))
            self.map_gpa(address & ~((1 << shift) - 1) if level > 1 else address, frame << 12, writable=None)
        large = 0x80 | self.pick((0, 0x1000)) if level > 1 else self.pick((0, 0x80))
        return address & ~((1 << shift) - 1) | large | self.guest_flags(leaf=True)

    # EPT

    def map_gpa(self, gpa: int, hpa: int, *, writable: bool | None) -> None:
        """Map a page; `writable` None: rights at will (a data page), else those of a page that holds guest tables."""
        assert self.ept is not None
        table = self.ept.root
        wanted = self.pick((1, 1, 1, 2, 3)) if gpa & 0x1F_FFFF == hpa else 1
        if wanted == 3 and (gpa & 0x3FFF_FFFF != hpa or not self.huge()):
            wanted = 2
        for level in range(self.ept.levels, 0, -1):
            here = table + 8 * (gpa >> (12 + 9 * (level - 1)) & 0x1FF)
            entry = self.mem.get(here, 0)
            if entry & 7:
                if level == 1 or (level <= 3 and entry & 0x80):
                    return
                table = entry & 0xFFFF_FFFF_F000
                continue
            self.entries.append(("ept", level, here, 8))
            if level <= wanted:
                self.mem[here] = self.ept_leaf(hpa if level == 1 else 0, level, writable)
                if isinstance(self.ept, ref.Ept) and self.ept.spptp is not None and level == 1:
                    self.sub_pages(gpa, here)
                return
            table = self.frame() << 12
            self.mem[here] = table | self.ept_upper(writable)

    def huge(self) -> bool:
        """1 GB pages exist."""
        return bool(self.ept.gb_pages if isinstance(self.ept, ref.Npt) else self.ept.caps & ref.EptCap.PAGE_1G)  # type: ignore[union-attr]

    def npt_flags(self, writable: bool | None, *, leaf: bool) -> int:
        flags = 7 if writable else 5
        if writable is None:
            flags = self.pick((7, 7, 7, 7, 5, 3))
            flags |= self.pick((0, 0, 0, 1 << 63)) if self.ept.nxe else 0  # type: ignore[union-attr]
        elif not leaf:
            flags = 7
        flags |= self.pick((0, 0x20)) | self.pick((0, 0, 8, 0x10)) | self.pick((0, 0x3FF << 52))
        return flags | (self.pick((0, 0x40)) | self.pick((0, 0x100)) if leaf else 0)

    def ept_upper(self, writable: bool | None) -> int:
        if isinstance(self.ept, ref.Npt):
            return self.npt_flags(writable, leaf=False)
        rights = 7 if writable is not None else self.pick((7, 7, 7, 7, 5, 3, 1))
        return rights | self.pick((0x400, 0x400, 0)) | self.pick((0, 0x100)) | self.pick((0, 0x3FF << 52))

    def ept_leaf(self, hpa: int, level: int, writable: bool | None) -> int:
        if isinstance(self.ept, ref.Npt):
            large = 0x80 | self.pick((0, 0, 0x1000)) if level > 1 else self.pick((0, 0x80))
            return hpa | large | self.npt_flags(writable, leaf=True)
        rights = self.pick((7, 7, 3, 5, 1, 4)) if writable is None else 7 if writable else 5
        flags = self.pick((0x400, 0)) | self.pick((0, 0x100, 0x300)) | self.pick((6, 0, 1, 4, 5)) << 3
        large = 0x80 if level > 1 else self.pick((0, 0x80))
        return hpa | rights | flags | large | self.pick((0, 0x40)) | self.pick((0, 0x800)) | self.pick((0, 0, 1 << 63))

    def sub_pages(self, gpa: int, leaf: int) -> None:
        """Sub-page permissions for a 4 KiB page, in tables that are mostly well-formed."""
        self.mem[leaf] |= self.pick((1 << 61, 1 << 61, 0))
        for frame, level in zip(SPP_FRAMES, (4, 3, 2, 1), strict=True):
            here = frame << 12 | 8 * (gpa >> (12 + 9 * (level - 1)) & 0x1FF)
            if level > 1:
                self.mem[here] = (frame + 1) << 12 | self.pick((1, 1, 1, 1, 1, 1, 0, 3, 0x81))
            else:
                self.mem[here] = self.pick((0x5555_5555_5555_5555, 1, 0, 1 << 62, 2))

    # defects

    def spoil(self) -> None:
        """Break one entry in one named way."""
        stage, level, hpa, size = self.pick(self.entries)
        entry = self.get(hpa, size)
        kinds = NPT_DEFECTS if isinstance(self.ept, ref.Npt) else EPT_DEFECTS
        kinds = GUEST_DEFECTS if stage == "guest" else kinds
        name = self.pick(tuple(kinds))
        changed = kinds[name](self, entry, level, hpa) & ((1 << 8 * size) - 1)
        self.put(hpa, size, changed)
        self.defects.append(f"{stage} L{level} @{hpa:x}: {name} ({entry:x} -> {changed:x})")


# ---- scenes --------------------------------------------------------------------------------------------------


def _linear_address(pick: Pick, state: ref.State) -> int:
    la = pick((0x123, 0xFF8, 0))
    bits = 10 if state.mode is ref.Mode.LEGACY32 else 9
    levels = {ref.Mode.LEVEL4: 4, ref.Mode.LEVEL5: 5, ref.Mode.PAE: 3}.get(state.mode, 2)
    for level in range(levels):
        la |= pick((0, 1, 2, (1 << bits) - 1)) << (12 + bits * level)
    if not state.lma:
        return la & 0xFFFF_FFFF
    top = 56 if state.la57 else 47
    return la | (1 << 64) - (1 << top) if la >> top & 1 else la


def build(
    pick: Pick, *, modes: Sequence[ref.Mode] = tuple(ref.Mode), with_ept: Sequence[bool | str] = (False, True)
) -> Scene:
    """One scene. `modes` and `with_ept` narrow the choice; "npt" there is AMD's nested paging."""
    state = _state(pick, modes)
    kind = pick(with_ept)
    ept = _npt(pick, state.maxphyaddr) if kind == "npt" else _ept(pick, state.maxphyaddr) if kind else None
    world = _World(pick, state, ept)
    attempts = []
    for _ in range(pick((1, 1, 2, 3))):
        la = _linear_address(pick, state)
        attempts.append((la, pick(ACCESSES)))
        if state.mode is not ref.Mode.NONE:
            largest = {ref.Mode.LEVEL4: 3, ref.Mode.LEVEL5: 3}.get(state.mode, 2)
            if state.mode is ref.Mode.LEGACY32 and not state.pse:
                largest = 1
            level = min(pick((1, 1, 1, 2, 3)), largest)
            world.guest_path(la, 2 if level == 3 and not state.gb_pages else level)
        elif ept is not None:
            world.map_gpa(la & ~0xFFF, world.frame() << 12, writable=None)
    if state.mode is ref.Mode.PAE and isinstance(ept, ref.Npt):
        world.pdpt = world.guest_page()
    for _ in range(pick((0, 0, 1, 1, 1, 2, 3))):
        if world.entries:
            world.spoil()
    if state.lma and pick((False,) * 15 + (True,)):
        attempts[0] = (attempts[0][0] ^ 1 << pick((63, 60, 57)), attempts[0][1])
        world.defects.append("linear address perhaps not canonical")
    return Scene(
        mem=world.mem,
        state=_with_roots(pick, state, world),
        ept=ept,
        attempts=tuple(attempts),
        defects=tuple(world.defects),
    )


def _with_roots(pick: Pick, state: ref.State, world: _World) -> ref.State:
    if state.mode is ref.Mode.NONE:
        return state
    if state.mode is not ref.Mode.PAE:
        return replace(state, cr3=world.roots[0][0] | pick((0, 0x18)))
    registers = [0, 0, 0, 0]
    for index, (gpa, _) in world.roots.items():
        registers[index] = gpa | pick((1, 1, 1, 1, 1, 1, 0)) | pick((0, 0x18))
    if isinstance(world.ept, ref.Npt):  # they stay in memory
        gpa, hpa = world.pdpt
        for index, value in enumerate(registers):
            world.mem[hpa + 8 * index] = value | pick((0,) * 7 + (2, 0x20, 0x100, 1 << 52))
        return replace(state, cr3=gpa | pick((0, 0x18)))
    return replace(state, pdpte=(registers[0], registers[1], registers[2], registers[3]))


def from_bytes(choices: bytes, **narrow: Any) -> Scene:
    """The scene that these choices make: one byte a pick, zeros when they run out; zero picks the plain thing."""
    left = iter(choices)
    return build(lambda sequence: sequence[next(left, 0) % len(sequence)], **narrow)


def scenes(**narrow: Any) -> st.SearchStrategy[Scene]:
    """Strategy of scenes; `modes` and `with_ept` narrow it. One draw a scene, so it is quick, and shrinks to zeros."""
    return st.binary(min_size=512, max_size=512).map(lambda choices: from_bytes(choices, **narrow))


def random_scene(rng: random.Random, **narrow: Any) -> Scene:
    """One scene from a seeded generator: fast enough for runs of many thousands."""
    return build(rng.choice, **narrow)
