"""Random programs of a bare guest that edits its own page tables, and what the architecture says they do.

Guest-physical memory of a program holds nine frames, three in each of the first three 2 MB regions, and every one of
them may be a table at any level, data, or both: programs use only the entries 0..2 (words 0..2) of a table, and linear
addresses whose indices are 0..2. So tables are shared, found at several levels, and reached by 4 KB, 2 MB and 1 GB
pages. Entry 256 of each frame leads to a window, through which the supervisor sees all frames.

:func:`compile_program` runs a program on the executable specification without a TLB. It puts in the invalidations that
the architecture demands: before an access that some translation cached since (TLB or paging-structure cache) would
make come out differently, the address is invalidated or CR3 loaded (tlb.md §3, paging.md §7).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import strategies as st

from fastmmu import reference
from fastmmu.dtypes import StepKind

P, RW, US, A, D, PS, G, XD = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 63
FRAME = 0x000F_FFFF_FFFF_F000
FRAMES = tuple(region << 21 | page << 12 for region in range(3) for page in range(3))
WINDOW = 0xFFFF_8000_0000_0000  # linear address at which guest-physical 0 is seen
WINDOW_TABLES = (0x80_0000, 0x80_1000, 0x80_2000, 0x80_3000, 0x80_4000)  # PDPT, PD, three PTs
ALL_FRAMES = FRAMES + WINDOW_TABLES
MAXPHYADDR = 46
CR0, CR4, EFER = 0x8005_0033, 0xA0, 0xD01


class Regime(NamedTuple):
    """Registers that do not change while a program runs."""

    wp: bool = True
    smep: bool = False
    smap: bool = False
    ac: bool = False
    nxe: bool = True
    pge: bool = False
    upper_a: str = "eager"

    def registers(self, cr3: int) -> dict[str, object]:
        """Keyword arguments of GuestState, and of the specification's State."""
        return {
            "cr0": CR0 if self.wp else CR0 & ~(1 << 16),
            "cr3": cr3,
            "cr4": 0x20 | self.pge << 7 | self.smep << 20 | self.smap << 21,
            "efer": EFER if self.nxe else EFER & ~(1 << 11),
            "ac": int(self.ac),
            "maxphyaddr": MAXPHYADDR,
            "upper_a": self.upper_a,
        }


class Access(NamedTuple):
    la: int
    access: str
    user: bool


class Store(NamedTuple):
    la: int
    value: int


class MovCr3(NamedTuple):
    cr3: int


class Invlpg(NamedTuple):
    la: int


Instruction = Access | Store | MovCr3 | Invlpg


class Came(NamedTuple):
    """What an access came to: guest-physical address, or #PF."""

    gpa: int | None
    error_code: int | None = None
    cr2: int | None = None


@dataclass
class Program:
    """Instructions with the outcome of each, None for those without; memory before and after, {gpa: qword}."""

    regime: Regime
    cr3: int
    before: dict[int, int]
    instructions: list[Instruction] = field(default_factory=list)
    outcomes: list[Came | None] = field(default_factory=list)
    after: dict[int, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [f"Program({self.regime}, cr3={self.cr3:#x}"]
        lines += [f"  {gpa:#x}: {value:#x}" for gpa, value in sorted(self.before.items()) if value and gpa & 0xFFF < 32]
        for instruction, came in zip(self.instructions, self.outcomes, strict=True):
            fields = ", ".join(hex(x) if type(x) is int else repr(x) for x in instruction)
            lines.append(f"  {type(instruction).__name__}({fields})  -> {came and [x and hex(x) for x in came]}")
        return "\n".join(lines) + ")"


# ---- memory at the start --------------------------------------------------------------------------------------


def entry_of(rng: random.Random, frame: int, *, large: bool = False) -> int:
    """An entry, mostly one that allows much."""
    flags = 0 if rng.random() < 0.06 else P
    for bit, often in ((RW, 0.9), (US, 0.93), (A, 0.5), (D, 0.5), (G, 0.15), (XD, 0.04)):
        flags |= bit if rng.random() < often else 0
    if rng.random() < 0.01:
        flags |= 1 << 50  # reserved: at or above MAXPHYADDR
    return (frame & ~0x1F_FFFF if large else frame) | flags | (PS if large else 0)


def start(seed: int) -> tuple[int, dict[int, int]]:
    """CR3 and memory: two roots, two tables of each lower level, data; with exceptions."""
    rng = random.Random(seed)
    frames = list(FRAMES)
    rng.shuffle(frames)
    level = {4: frames[0:2], 3: frames[2:3], 2: frames[3:5], 1: frames[5:7]}
    memory: dict[int, int] = {}
    for n in (4, 3, 2, 1):
        for table in level[n]:
            for i in range(3):
                choice = rng.random()
                if choice < 0.12:
                    continue
                if i == 2 and n == 4 and choice < 0.7:
                    memory[table + 8 * i] = entry_of(rng, table)  # maps itself
                elif choice < 0.2 or n == 1:
                    memory[table + 8 * i] = entry_of(rng, rng.choice(frames))
                elif n in (2, 3) and choice < 0.4:
                    memory[table + 8 * i] = entry_of(rng, rng.choice(frames) if n == 2 else 0, large=True)
                else:
                    memory[table + 8 * i] = entry_of(rng, rng.choice(level[n - 1]))
    pdpt, pd, *pts = WINDOW_TABLES
    g = G if rng.random() < 0.5 else 0
    for frame in FRAMES:
        memory[frame + 8 * 256] = pdpt | P | RW | A
    memory[pdpt] = pd | P | RW | A
    small = rng.random() < 0.5
    for region, pt in enumerate(pts):
        memory[pd + 8 * region] = pt | P | RW | A if small else region << 21 | P | RW | PS | g
        for page in range(3):
            memory[pt + 8 * page] = region << 21 | page << 12 | P | RW | g
    memory[pd + 8 * 4] = 4 << 21 | P | RW | PS | g
    return level[4][0], memory


# ---- what may be cached -----------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A TLB entry: the page of linear addresses, where it leads, the rights gathered by its walk."""

    base: int
    size: int
    gpa: int
    us: int
    rw: int
    xd: int
    dirty: int
    global_page: int

    def covers(self, la: int) -> bool:
        return self.base <= la < self.base + self.size


class Cached:
    """Everything that a processor may have cached, where it caches all and forgets only what it must."""

    def __init__(self, regime: Regime) -> None:
        self.regime = regime
        self.tlb: set[Entry] = set()
        self.upper: dict[tuple[int, int], set[tuple[int, ...]]] = {}  # (level, prefix) -> (table, us, rw, xd)

    def allows(self, entry: Entry, access: str, user: bool) -> bool:
        r = self.regime
        if user and not entry.us:
            return False
        if access == "x":
            return not entry.xd and not (r.smep and not user and entry.us)
        if not user and entry.us and r.smap and not r.ac:
            return False
        return access == "r" or bool(entry.dirty and (entry.rw or not (user or r.wp)))

    def upper_of(self, la: int, outcome: reference.Outcome) -> dict[tuple[int, int], tuple[int, ...]]:
        """What the walk may leave in the paging-structure caches."""
        found = {}
        us, rw, xd = 1, 1, 0
        for step in outcome.steps:
            if step.kind != StepKind.GUEST or step.level == 1 or not step.entry & P:
                continue
            if step.entry & (1 << 50) or (step.entry & XD and not self.regime.nxe) or step.entry & PS:
                break
            us, rw, xd = us & step.entry >> 2, rw & step.entry >> 1, xd | step.entry >> 63
            found[step.level, la >> (9 * step.level + 3)] = (step.entry & FRAME, us, rw, xd)
        return found

    def stale(self, la: int, access: str, user: bool, outcome: reference.Outcome) -> bool:
        """Does anything cached make this access come out differently from the walk `outcome`?"""
        for entry in self.tlb:
            if entry.covers(la) and self.allows(entry, access, user):
                same = isinstance(outcome, reference.Mapped) and outcome.gpa == entry.gpa + la - entry.base
                if not same or outcome.changes:
                    return True
        now = self.upper_of(la, outcome)
        for level in (2, 3, 4):
            for then in self.upper.get((level, la >> (9 * level + 3)), ()):
                if now.get((level, la >> (9 * level + 3))) != then or outcome.changes:
                    return True
        return False

    def walked(self, la: int, outcome: reference.Outcome) -> None:
        for key, value in self.upper_of(la, outcome).items():
            self.upper.setdefault(key, set()).add(value)
        if isinstance(outcome, reference.Mapped):
            size = outcome.guest_size
            self.tlb.add(
                Entry(la & -size, size, outcome.gpa & -size, outcome.us, outcome.rw, outcome.xd, outcome.dirty,
                      outcome.global_page)
            )  # fmt: skip

    def page_fault(self, la: int) -> None:
        self.tlb = {e for e in self.tlb if e.global_page or e.size > 4096 or not e.covers(la)}
        for level in (2, 3, 4):
            self.upper.pop((level, la >> (9 * level + 3)), None)

    def invlpg(self, la: int) -> None:
        self.tlb = {e for e in self.tlb if not e.covers(la)}
        self.upper.clear()

    def mov_cr3(self) -> None:
        self.tlb = {e for e in self.tlb if e.global_page}
        self.upper.clear()


# ---- from the choices of hypothesis to a program ----------------------------------------------------------------


class Compiler:
    """Runs the program on the specification while it is being written."""

    def __init__(self, regime: Regime, seed: int, disciplined: bool) -> None:
        cr3, memory = start(seed)
        self.disciplined = disciplined
        self.program = Program(regime, cr3, dict(memory))
        self.memory = reference.SparseMemory(memory, nbytes=1 << 26)
        self.cr3 = cr3
        self.cached = Cached(regime)

    def state(self, user: bool) -> reference.State:
        return reference.State(**self.program.regime.registers(self.cr3), cpl=3 if user else 0)

    def emit(self, instruction: Instruction, came: Came | None = None) -> None:
        self.program.instructions.append(instruction)
        self.program.outcomes.append(came)

    def access(self, la: int, access: str, user: bool, *, value: int | None, reload: bool) -> None:
        outcome = reference.walk(self.memory, self.state(user), la, access, write=False)
        if self.disciplined and self.cached.stale(la, access, user, outcome):
            if reload:
                self.mov_cr3(self.cr3)
            if self.cached.stale(la, access, user, outcome):
                self.invlpg(la)
        for change in outcome.changes:
            self.memory.write64(change.hpa, change.value)
        self.cached.walked(la, outcome)
        if isinstance(outcome, reference.PageFault):
            self.cached.page_fault(la)
            came = Came(None, outcome.error_code, outcome.cr2)
        else:
            assert isinstance(outcome, reference.Mapped)
            came = Came(outcome.gpa)
            if value is not None:
                self.memory.write64(outcome.gpa, value)
        self.emit(Access(la, access, user) if value is None else Store(la, value), came)

    def mov_cr3(self, cr3: int) -> None:
        self.cr3 = cr3
        self.cached.mov_cr3()
        self.emit(MovCr3(cr3))

    def invlpg(self, la: int) -> None:
        self.cached.invlpg(la)
        self.emit(Invlpg(la))

    def edit_on_path(self, la: int, level: int, how: int, frame: int, *, reload: bool) -> None:
        """Changes an entry that translates la."""
        outcome = reference.walk(self.memory, self.state(False), la, "r", write=False)
        path = [step.gpa for step in outcome.steps if step.kind == StepKind.GUEST]
        self.edit(path[min(level, len(path) - 1)], how, frame, reload=reload)

    def edit(self, gpa: int, how: int, frame: int, *, reload: bool) -> None:
        """Changes an entry through the window, as a kernel would."""
        self.access(WINDOW + gpa, "w", False, value=edited(self.memory.read64(gpa), how, frame), reload=reload)


EDITS = (P, RW, US, XD, A, D, A | D, PS, G, RW | D, P | A)


def edited(entry: int, how: int, frame: int) -> int:
    """The entry after an edit: a bit flipped, another frame, cleared, made anew, large or not."""
    if how < len(EDITS):
        return entry ^ EDITS[how]
    how -= len(EDITS)
    if how == 0:
        return entry & ~FRAME | frame
    if how == 1:
        return 0
    if how == 2:
        return frame | P | RW | US
    if how == 3:
        return frame | P | RW | US | A | D
    if how == 4:
        return frame & ~0x1F_FFFF | P | RW | US | PS
    return entry & ~(PS | FRAME) | frame | P


N_EDITS = len(EDITS) + 6

regimes = st.builds(
    Regime,
    wp=st.booleans(),
    smep=st.booleans(),
    smap=st.booleans(),
    ac=st.booleans(),
    nxe=st.sampled_from([True, True, True, False]),
    pge=st.booleans(),
    upper_a=st.sampled_from(["eager", "lazy"]),
)
_index = st.sampled_from([0, 0, 1, 1, 2])
_frame = st.sampled_from(FRAMES)
addresses = st.builds(
    lambda i4, i3, i2, i1, word: i4 << 39 | i3 << 30 | i2 << 21 | i1 << 12 | word << 3,
    _index, _index, _index, _index, st.integers(0, 2),
)  # fmt: skip
_windows = st.builds(lambda frame, word: WINDOW + frame + 8 * word, st.sampled_from(ALL_FRAMES), st.integers(0, 2))
_any_address = st.one_of(addresses, addresses, addresses, _windows)
_kind = st.sampled_from(["r", "w", "x", "rw"])
_access = st.tuples(st.just("access"), _any_address, _kind, st.booleans())
_table = st.sampled_from(FRAMES * 3 + WINDOW_TABLES[1:])
_edit = st.tuples(st.just("edit"), _table, st.integers(0, 2), st.integers(0, N_EDITS - 1), _frame)
_edit_on_path = st.tuples(
    st.just("path"), addresses, st.integers(0, 3), st.integers(0, N_EDITS - 1), _frame, _kind, st.booleans()
)
_poke = st.tuples(st.just("poke"), addresses, st.integers(0, N_EDITS - 1), _frame)
_cr3 = st.tuples(st.just("cr3"), st.integers(0, 5), _frame)
_invlpg = st.tuples(st.just("invlpg"), _any_address)
operations = st.tuples(
    st.booleans(), st.one_of(_access, _access, _access, _edit_on_path, _edit_on_path, _edit, _poke, _cr3, _invlpg)
)


def compile_program(
    regime: Regime, seed: int, choices: list[tuple[bool, tuple[Any, ...]]], disciplined: bool = True
) -> Program:
    """The program of these choices, with the invalidations that it owes; without them unless `disciplined`."""
    compiler = Compiler(regime, seed, disciplined)
    roots = [compiler.cr3, *(gpa for gpa in FRAMES if gpa != compiler.cr3 and compiler.memory.read64(gpa))]
    for reload, (kind, *rest) in choices:
        if kind == "access":
            la, access, user = rest
            compiler.access(la, access, user, value=None, reload=reload)
        elif kind == "edit":
            table, index, how, frame = rest
            compiler.edit(table + 8 * index, how, frame, reload=reload)
        elif kind == "path":
            la, level, how, frame, access, user = rest
            compiler.edit_on_path(la, level, how, frame, reload=reload)
            compiler.access(la, access, user, value=None, reload=reload)
        elif kind == "poke":
            la, how, frame = rest
            compiler.access(la, "w", False, value=edited(0, how, frame), reload=reload)
        elif kind == "cr3":
            which, frame = rest
            compiler.mov_cr3(frame if which == 0 else roots[which % min(2, len(roots))])
        else:
            compiler.invlpg(*rest)
    compiler.mov_cr3(compiler.cr3)
    compiler.program.after = dict(compiler.memory.qwords)
    return compiler.program


# a list of lists is on average longer than a list, and shrinks as well
_parts = st.lists(st.lists(operations, min_size=1, max_size=30), min_size=1, max_size=30)
_operations = _parts.map(lambda parts: [choice for part in parts for choice in part])
programs = st.builds(compile_program, regimes, st.integers(0, 1 << 20), _operations)


undisciplined = st.builds(compile_program, regimes, st.integers(0, 1 << 20), _operations, st.just(False))
