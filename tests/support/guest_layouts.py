"""Where the random programs of `guest_programs` have their tables and data, in each paging mode.

Guest-physical memory of a program holds nine frames, three in each of the first three 2 MB regions, and every one of
them may be a table at any level, data, or both: of a table programs use three entries alone, and linear addresses whose
indices are those. So tables are shared, found at several levels, and reached by large pages. One more entry of each
frame leads to a window, through which the supervisor sees all frames.
"""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

from fastmmu.reference import Mode, State
from fastmmu.reference.paging import guest

P, RW, US, A, D, PS, G, XD = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 63
FRAME = 0x000F_FFFF_FFFF_F000  # address bits of an entry
FRAMES = tuple(region << 21 | page << 12 for region in range(3) for page in range(3))
WINDOW_TABLES = (0x80_0000, 0x80_1000, 0x80_2000, 0x80_3000, 0x80_4000, 0x80_5000)
ALL_FRAMES = FRAMES + WINDOW_TABLES
MAXPHYADDR = 46
CR0, CR4, EFER = 0x8005_0033, 0xA0, 0xD01
WINDOW = 0xFFFF_8000_0000_0000  # of 4-level paging: linear address at which guest-physical 0 is seen


class Regime(NamedTuple):
    """Registers that do not change while a program runs."""

    wp: bool = True
    smep: bool = False
    smap: bool = False
    ac: bool = False
    nxe: bool = True
    pge: bool = False
    upper_a: str = "eager"
    mode: Mode = Mode.LEVEL4
    pse: bool = True

    def registers(self, cr3: int) -> dict[str, object]:
        """Keyword arguments of GuestState, and of the specification's State."""
        cr0 = CR0 if self.wp else CR0 & ~(1 << 16)
        cr4 = self.pse << 4 | self.pge << 7 | self.smep << 20 | self.smap << 21
        return {
            "cr0": cr0 & ~(1 << 31) if self.mode is Mode.NONE else cr0,
            "cr3": cr3,
            "cr4": cr4 | (self.mode >= Mode.PAE) << 5 | (self.mode is Mode.LEVEL5) << 12,
            "efer": (0xD01 if self.mode >= Mode.LEVEL4 else 0x801) & (~0 if self.nxe else ~(1 << 11)),
            "ac": int(self.ac),
            "maxphyaddr": MAXPHYADDR,
            "upper_a": self.upper_a,
        }

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.mode]

    def state(self, cr3: int, pdpte: tuple[int, ...] = (), *, user: bool = False) -> State:
        """For the specification; pdpte: the PDPTE registers of PAE paging."""
        more = {"pdpte": pdpte} if pdpte else {}
        return State(**self.registers(cr3), cpl=3 if user else 0, **more)


class Layout(NamedTuple):
    """Geometry of a paging mode, and the indices that programs use.

    shifts: of an index of each level, from level 1 up; the last of PAE paging is that of the PDPTE registers. size: of
    an entry. indices: entries of a table that programs use; of 4-byte tables in both halves of a page table, and in two
    quadrants of a page directory. window: index of the entry of the top table that leads to it; its linear address.
    """

    shifts: tuple[int, ...]
    size: int
    indices: tuple[int, int, int]
    window: int
    window_la: int
    tables: tuple[int, ...]  # how many frames are tables of each level, from level 1 up

    @property
    def index_bits(self) -> int:
        return 10 if self.size == 4 else 9

    @property
    def offsets(self) -> tuple[int, ...]:
        """Of the entries in use, in bytes."""
        return tuple(self.size * i for i in self.indices)

    def address(self, indices: tuple[int, ...], word: int) -> int:
        """Linear address of the word at one of `offsets` of the page that these indices lead to."""
        if not self.shifts:
            return FRAMES[sum(indices) % len(FRAMES)] + self.offsets[word]
        la = self.offsets[word]
        for shift, index in zip(self.shifts, indices, strict=False):
            la |= (index if shift == 30 and len(self.shifts) == 3 else self.indices[index]) << shift
        return la

    def index(self, la: int, level: int) -> int:
        return la >> self.shifts[level - 1] & ((1 << self.index_bits) - 1)

    def read(self, memory: dict[int, int], at: int) -> int:
        """An entry, from memory as {gpa: qword}."""
        word = memory.get(at & ~7, 0)
        return word if self.size == 8 else word >> (at & 4) * 8 & 0xFFFF_FFFF

    def write(self, memory: dict[int, int], at: int, entry: int) -> None:
        if self.size == 4:
            shift = (at & 4) * 8
            entry = memory.get(at & ~7, 0) & ~(0xFFFF_FFFF << shift) | (entry & 0xFFFF_FFFF) << shift
        memory[at & ~7] = entry


LAYOUTS = {
    Mode.LEVEL4: Layout((12, 21, 30, 39), 8, (0, 1, 2), 256, WINDOW, (2, 2, 1, 2)),
    Mode.LEVEL5: Layout((12, 21, 30, 39, 48), 8, (0, 1, 2), 256, 0xFF00_0000_0000_0000, (2, 1, 1, 1, 2)),
    Mode.PAE: Layout((12, 21, 30), 8, (0, 1, 2), 3, 0xC000_0000, (2, 3, 2)),
    Mode.LEGACY32: Layout((12, 22), 4, (0, 1, 513), 768, 0xC000_0000, (3, 2)),
    Mode.NONE: Layout((), 8, (0, 1, 2), 0, 0, ()),
}


def entry_of(rng: random.Random, layout: Layout, frame: int, *, large: int = 0) -> int:
    """An entry, mostly one that allows much; `large`: log2 of the page size of one that maps a large page."""
    flags = 0 if rng.random() < 0.06 else P
    for bit, often in ((RW, 0.9), (US, 0.93), (A, 0.5), (D, 0.5), (G, 0.15), (XD, 0.04)):
        flags |= bit if rng.random() < often else 0
    chance = rng.random()
    if layout.size == 4:
        flags &= ~XD
        if chance < 0.02 and large:
            flags |= 1 << 21  # reserved, between the fields of PSE-36
    elif chance < 0.01:
        flags |= 1 << 50  # reserved: at or above MAXPHYADDR
    elif chance < 0.02:
        flags |= 1 << 55  # reserved with PAE paging, else ignored
    return (frame >> large << large | PS if large else frame) | flags


def pdpte_of(rng: random.Random, frame: int) -> int:
    return frame | (0 if rng.random() < 0.15 else P) | rng.choice([0, 0, 0x18, 0xE00])


def window_into(memory: dict[int, int], rng: random.Random, regime: Regime) -> None:
    """The tables of the window, and the entry in each frame that leads to them."""
    layout = regime.layout
    if not layout.shifts:
        return
    pdpt, pd, *pts, pml4 = WINDOW_TABLES
    g = G if rng.random() < 0.5 else 0
    small = rng.random() < 0.5 or (layout.size == 4 and not regime.pse)
    # tables between the top one and the page tables, the page directory last; with 4-byte entries the top one is it
    between = [] if layout.size == 4 else [pml4, pdpt, pd][-(len(layout.shifts) - 2) :]
    for frame in FRAMES:
        flags = P if len(layout.shifts) == 3 else P | RW | A
        if between:
            layout.write(memory, frame + 8 * layout.window, between[0] | flags)
            continue
        for i in range(3):  # 4 MB of each page directory entry
            page = i << 22 | P | RW | PS | g if not small else pts[i] | P | RW | A
            layout.write(memory, frame + 4 * (layout.window + i), page)
    for upper, lower in itertools.pairwise(between):
        memory[upper] = lower | P | RW | A
    if between:
        for region, pt in enumerate(pts):
            memory[pd + 8 * region] = pt | P | RW | A if small else region << 21 | P | RW | PS | g
            for page in range(3):
                memory[pt + 8 * page] = region << 21 | page << 12 | P | RW | g
        memory[pd + 8 * 4] = 4 << 21 | P | RW | PS | g
    elif small:
        for region in range(3):
            for page in range(3):
                at = pts[region >> 1] + 4 * ((region & 1) << 9 | page)
                layout.write(memory, at, region << 21 | page << 12 | P | RW | g)
        for page in range(len(WINDOW_TABLES)):
            layout.write(memory, pts[2] + 4 * page, WINDOW_TABLES[0] + (page << 12) | P | RW | g)


def start_of(seed: int, regime: Regime) -> tuple[list[int], dict[int, int]]:
    """Roots, the one to begin with first, and memory: tables of each level, data; with exceptions."""
    layout = regime.layout
    rng = random.Random(seed)
    frames = list(FRAMES)
    rng.shuffle(frames)
    spare = iter(frames)
    top = len(layout.shifts)
    level = {n: [next(spare) for _ in range(layout.tables[n - 1])] for n in range(top, 0, -1)}
    memory: dict[int, int] = {}
    for n in range(top, 0, -1):
        for table in level[n]:
            for i, offset in enumerate(layout.offsets):
                choice = rng.random()
                if n == 3 == top:
                    memory[table + offset] = pdpte_of(rng, rng.choice(level[2]))
                    continue
                if choice < 0.12:
                    continue
                if i == 2 and n == (2 if top == 3 else top) and choice < 0.7:
                    entry = entry_of(rng, layout, table)  # maps itself
                elif choice < 0.2 or n == 1:
                    entry = entry_of(rng, layout, rng.choice(frames))
                elif n in (2, 3) and choice < 0.4:
                    large = layout.shifts[n - 1]
                    entry = entry_of(rng, layout, rng.choice(frames) if n == 2 else 0, large=large)
                else:
                    entry = entry_of(rng, layout, rng.choice(level[n - 1]))
                layout.write(memory, table + offset, entry)
    window_into(memory, rng, regime)
    return level.get(top, [0]), memory


def start(seed: int) -> tuple[int, dict[int, int]]:
    """CR3 and memory of a guest with 4-level paging."""
    roots, memory = start_of(seed, Regime())
    return roots[0], memory


def ends_walk(state: State, entry: int, level: int) -> bool:
    """Is there nothing below this present entry: a page, or a reserved bit?"""
    return guest.is_leaf(state, entry, level) or bool(entry & guest.reserved_bits(state, entry, level))
