"""Random programs of a bare guest that edits its own page tables, and what the architecture says they do.

In every paging mode; where tables and data lie: `guest_layouts`.

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
from fastmmu.reference import Mode
from tests.support.guest_layouts import (
    ALL_FRAMES,
    FRAMES,
    MAXPHYADDR,
    PS,
    RW,
    US,
    WINDOW,
    WINDOW_TABLES,
    XD,
    A,
    D,
    G,
    P,
    Regime,
    ends_walk,
    pdpte_of,
    start,
    start_of,
)

__all__ = [
    "ALL_FRAMES",
    "FRAMES",
    "GENERAL_PROTECTION",
    "PS",
    "RW",
    "US",
    "WINDOW",
    "WINDOW_TABLES",
    "XD",
    "A",
    "Access",
    "Came",
    "D",
    "G",
    "Instruction",
    "Invlpg",
    "Mode",
    "MovCr3",
    "P",
    "Program",
    "Regime",
    "Store",
    "programs",
    "start",
    "undisciplined",
]  # fmt: skip

FRAME = 0x000F_FFFF_FFFF_F000


class Access(NamedTuple):
    la: int
    access: str
    user: bool


class Store(NamedTuple):
    la: int
    value: int
    size: int = 8


class MovCr3(NamedTuple):
    cr3: int


class Invlpg(NamedTuple):
    la: int


Instruction = Access | Store | MovCr3 | Invlpg


class Came(NamedTuple):
    """What an access came to: guest-physical address, or #PF; a MOV to CR3: nothing, or #GP."""

    gpa: int | None
    error_code: int | None = None
    cr2: int | None = None


GENERAL_PROTECTION = Came(None, -1)


@dataclass
class Program:
    """Instructions with the outcome of each, None for those without; memory before and after, {gpa: qword}.

    cr3_after, pdptes_after: registers at the end; flushed: MOV to CR3 was the last instruction, and no #GP.
    """

    regime: Regime
    cr3: int
    before: dict[int, int]
    instructions: list[Instruction] = field(default_factory=list)
    outcomes: list[Came | None] = field(default_factory=list)
    after: dict[int, int] = field(default_factory=dict)
    cr3_after: int = 0
    pdptes_after: tuple[int, ...] = ()
    flushed: bool = True

    def __repr__(self) -> str:
        lines = [f"Program({self.regime}, cr3={self.cr3:#x}"]
        lines += [f"  {gpa:#x}: {value:#x}" for gpa, value in sorted(self.before.items()) if value and gpa & 0xFFF < 32]
        for instruction, came in zip(self.instructions, self.outcomes, strict=True):
            fields = ", ".join(hex(x) if type(x) is int else repr(x) for x in instruction)
            lines.append(f"  {type(instruction).__name__}({fields})  -> {came and [x and hex(x) for x in came]}")
        return "\n".join(lines) + ")"


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
    """Everything that a processor may have cached, where it caches all and forgets only what it must.

    That a #PF forgets what denied is nothing to rely on: it may be cached again at once, and in shadow tables it stays.
    """

    def __init__(self, regime: Regime) -> None:
        self.regime = regime
        self.tlb: set[Entry] = set()
        self.upper: dict[tuple[int, int], set[tuple[int, ...]]] = {}  # (level, prefix) -> (table, us, rw, xd)
        self.now = 0
        self.changed: dict[int, int] = {}  # address of an entry that may have been fetched before its use -> when
        self.flushed = 0
        self.invalidated: dict[int, int] = {}  # page number -> when

    def allows(self, entry: Entry, access: str, user: bool) -> bool:
        r = self.regime
        if user and not entry.us:
            return False
        if access == "x":
            return not entry.xd and not (r.smep and not user and entry.us)
        if not user and entry.us and r.smap and not r.ac:
            return False
        return access == "r" or bool(entry.dirty and (entry.rw or not (user or r.wp)))

    def levels(self, la: int) -> dict[int, tuple[int, int]]:
        """Keys of what paging-structure caches hold for la: by level, those of entries in memory above level 1."""
        shifts = self.regime.layout.shifts
        return {n: (n, la >> shift) for n, shift in enumerate(shifts, 1) if n > 1 and (n < 3 or len(shifts) > 3)}

    def upper_of(self, la: int, outcome: reference.Outcome) -> dict[tuple[int, int], tuple[int, ...]]:
        """What the walk may leave in the paging-structure caches."""
        found = {}
        us, rw, xd = 1, 1, 0
        keys, state = self.levels(la), self.regime.state(0)
        for step in outcome.steps:
            if step.kind != StepKind.GUEST or step.level == 1 or not step.entry & P:
                continue
            if ends_walk(state, step.entry, step.level):
                break
            us, rw, xd = us & step.entry >> 2, rw & step.entry >> 1, xd | step.entry >> 63
            found[keys[step.level]] = (step.entry & FRAME, us, rw, xd)
        return found

    def stale(self, la: int, access: str, user: bool, outcome: reference.Outcome) -> bool:
        """Does anything cached make this access come out differently from the walk `outcome`?"""
        for entry in self.tlb:
            if entry.covers(la) and self.allows(entry, access, user):
                same = isinstance(outcome, reference.Mapped) and outcome.gpa == entry.gpa + la - entry.base
                if not same or outcome.changes:
                    return True
        for step in outcome.steps:
            since = max(self.flushed, self.invalidated.get(la >> 12, 0))
            if step.kind == StepKind.GUEST and step.level == 1 and self.changed.get(step.gpa, 0) > since:
                return True
        now = self.upper_of(la, outcome)
        for key in self.levels(la).values():
            for then in self.upper.get(key, ()):
                if now.get(key) != then or outcome.changes:
                    return True
        return False

    def walked(self, la: int, outcome: reference.Outcome) -> None:
        for key, value in self.upper_of(la, outcome).items():
            self.upper.setdefault(key, set()).add(value)
        if isinstance(outcome, reference.Mapped) and outcome.guest_size:
            size = outcome.guest_size
            self.tlb.add(
                Entry(la & -size, size, outcome.gpa & -size, outcome.us, outcome.rw, outcome.xd, outcome.dirty,
                      outcome.global_page)
            )  # fmt: skip

    def stored(self, gpa: int, size: int, before: reference.SparseMemory, after: int) -> None:
        """A processor may fetch ahead what an entry with A=1 maps, and KVM does (PTE_PREFETCH_NUM)."""
        layout = self.regime.layout
        old = before.read64(gpa & ~7)
        self.now += 1
        for at in range(gpa & -layout.size, gpa + size, layout.size):
            was = layout.read({at & ~7: old}, at)
            if was & P and was & A and was != layout.read({at & ~7: after}, at):
                self.changed[at] = self.now

    def invlpg(self, la: int) -> None:
        self.invalidated[la >> 12] = self.now
        self.tlb = {e for e in self.tlb if not e.covers(la)}
        self.upper.clear()

    def mov_cr3(self) -> None:
        self.flushed = self.now
        self.tlb = {e for e in self.tlb if e.global_page}
        self.upper.clear()


# ---- from the choices of hypothesis to a program ----------------------------------------------------------------


class Compiler:
    """Runs the program on the specification while it is being written."""

    def __init__(self, regime: Regime, seed: int, disciplined: bool) -> None:
        self.roots, memory = start_of(seed, regime)
        self.regime = regime
        self.layout = regime.layout
        self.disciplined = disciplined
        self.program = Program(regime, self.roots[0], dict(memory))
        self.memory = reference.SparseMemory(memory, nbytes=1 << 26)
        self.cached = Cached(regime)
        self.rng = random.Random(seed)
        self.cr3 = self.roots[0]
        self.pdptes: tuple[int, ...] = ()
        self.load(self.cr3)

    def state(self, user: bool) -> reference.State:
        return self.regime.state(self.cr3, self.pdptes, user=user)

    def load(self, cr3: int) -> bool:
        """CR3 gets its value, unless that is a #GP."""
        if self.regime.mode is Mode.PAE:
            loaded = pdptes_at(self.memory, cr3)
            if loaded is None:
                return False
            self.pdptes = loaded
        self.cr3 = cr3
        return True

    def emit(self, instruction: Instruction, came: Came | None = None) -> None:
        self.program.instructions.append(instruction)
        self.program.outcomes.append(came)

    def access(self, la: int, access: str, user: bool, *, value: int | None, reload: bool, size: int = 8) -> None:
        outcome = reference.walk(self.memory, self.state(user), la, access, write=False)
        if isinstance(outcome, reference.Mapped) and outcome.gpa >= self.memory.nbytes:
            return  # PSE-36: bits of a frame number became those of an address above 4 GB
        if self.disciplined and self.cached.stale(la, access, user, outcome):
            if reload:
                self.mov_cr3(self.cr3)  # with PAE paging the access may come out otherwise: PDPTE registers are new
                outcome = reference.walk(self.memory, self.state(user), la, access, write=False)
            if self.cached.stale(la, access, user, outcome):
                self.invlpg(la)
        for change in outcome.changes:
            self.memory.write64(change.hpa, change.value)
        self.cached.walked(la, outcome)
        if isinstance(outcome, reference.PageFault):
            came = Came(None, outcome.error_code, outcome.cr2)
        else:
            assert isinstance(outcome, reference.Mapped)
            came = Came(outcome.gpa)
            if value is not None:
                word = value
                if size == 4:
                    shift = (outcome.gpa & 4) * 8
                    word = self.memory.read64(outcome.gpa & ~7) & ~(0xFFFF_FFFF << shift) | value << shift
                self.cached.stored(outcome.gpa, size, self.memory, word)
                self.memory.write64(outcome.gpa & ~7, word)
        self.emit(Access(la, access, user) if value is None else Store(la, value, size), came)

    def mov_cr3(self, cr3: int) -> None:
        if self.load(cr3):
            self.cached.mov_cr3()
            self.emit(MovCr3(cr3))
        else:
            self.emit(MovCr3(cr3), GENERAL_PROTECTION)

    def invlpg(self, la: int) -> None:
        self.cached.invlpg(la)
        self.emit(Invlpg(la))

    def edit_on_path(self, la: int, level: int, how: int, frame: int, *, reload: bool) -> None:
        """Changes an entry that translates la."""
        outcome = reference.walk(self.memory, self.state(False), la, "r", write=False)
        path = [step.gpa for step in outcome.steps if step.kind == StepKind.GUEST] or [FRAMES[frame >> 12 & 3]]
        self.edit(path[min(level, len(path) - 1)], how, frame, reload=reload)

    def edit(self, gpa: int, how: int, frame: int, *, reload: bool) -> None:
        """Changes an entry through the window, as a kernel would."""
        entry = self.layout.read(self.memory.qwords, gpa)
        if self.regime.mode is Mode.PAE and gpa & ~0xFFF in self.roots and how % 3:
            value = pdpte_of(self.rng, frame)
        else:
            value = edited(entry, how, frame, self.layout.shifts[1] if self.layout.shifts else 21)
        size = self.layout.size
        self.access(
            self.layout.window_la + gpa, "w", False, value=value & (1 << 8 * size) - 1, reload=reload, size=size
        )

    def poke(self, la: int, how: int, frame: int, size: int, *, reload: bool) -> None:
        """A store to whatever is there: an entry, two of them or half of one."""
        value = edited(0, how, frame, 21) & 0xFFFF_FFFF
        if size == 8:
            value = value | value << 32 if self.layout.size == 4 else edited(0, how, frame, 21)
        self.access(la & -size, "w", False, value=value, reload=reload, size=size)


EDITS = (P, RW, US, XD, A, D, A | D, PS, G, RW | D, P | A)


def pdptes_at(memory: reference.Memory, cr3: int) -> tuple[int, ...] | None:
    """The PDPTE registers that MOV to CR3 loads, None: #GP."""
    outcome = reference.load_pdptes(memory, cr3, maxphyaddr=MAXPHYADDR)
    return outcome.pdpte if isinstance(outcome, reference.PdptesLoaded) else None


def edited(entry: int, how: int, frame: int, large: int = 21) -> int:
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
        return frame >> large << large | P | RW | US | PS
    return entry & ~(PS | FRAME) | frame | P


N_EDITS = len(EDITS) + 6

modes = st.sampled_from([Mode.LEVEL4] * 5 + [Mode.LEGACY32] * 4 + [Mode.PAE] * 3 + [Mode.LEVEL5] * 2 + [Mode.NONE])
_registers: dict[str, st.SearchStrategy[Any]] = {
    "wp": st.booleans(),
    "smep": st.booleans(),
    "smap": st.booleans(),
    "ac": st.booleans(),
    "nxe": st.sampled_from([True, True, True, False]),
    "pge": st.booleans(),
    "upper_a": st.sampled_from(["eager", "lazy"]),
}
regimes = st.builds(Regime, mode=st.just(Mode.LEVEL4), pse=st.just(True), **_registers)
all_regimes = st.builds(Regime, mode=modes, pse=st.sampled_from([True, True, False]), **_registers)
_index = st.sampled_from([0, 0, 1, 1, 2])
_frame = st.sampled_from(FRAMES)
_indices = st.tuples(_index, _index, _index, _index, _index)
_paths = st.tuples(st.just("path"), _indices, st.integers(0, 2))
addresses = _paths.map(lambda path: Regime().layout.address(path[1], path[2]))  # with 4-level paging
_windows = st.tuples(st.just("window"), st.sampled_from(ALL_FRAMES), st.integers(0, 2))
_any_address = st.one_of(_paths, _paths, _paths, _windows)
_kind = st.sampled_from(["r", "w", "x", "rw"])
_access = st.tuples(st.just("access"), _any_address, _kind, st.booleans())
_table = st.sampled_from(FRAMES * 3 + WINDOW_TABLES[1:5])
_edit = st.tuples(st.just("edit"), _table, st.integers(0, 2), st.integers(0, N_EDITS - 1), _frame)
_edit_on_path = st.tuples(
    st.just("path"), _paths, st.integers(0, 4), st.integers(0, N_EDITS - 1), _frame, _kind, st.booleans()
)
_poke = st.tuples(st.just("poke"), _paths, st.integers(0, N_EDITS - 1), _frame, st.sampled_from([4, 8, 8]))
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
    layout = regime.layout

    def linear(place: tuple[str, Any, int]) -> int:
        kind, where, word = place
        return layout.address(where, word) if kind == "path" else layout.window_la + where + layout.offsets[word]

    for reload, (kind, *rest) in choices:
        if kind == "access":
            place, access, user = rest
            compiler.access(linear(place), access, user, value=None, reload=reload)
        elif kind == "edit":
            table, index, how, frame = rest
            compiler.edit(table + layout.offsets[index], how, frame, reload=reload)
        elif kind == "path":
            place, level, how, frame, access, user = rest
            compiler.edit_on_path(linear(place), level, how, frame, reload=reload)
            compiler.access(linear(place), access, user, value=None, reload=reload)
        elif kind == "poke":
            place, how, frame, size = rest
            compiler.poke(linear(place), how, frame, size, reload=reload)
        elif kind == "cr3":
            which, frame = rest
            compiler.mov_cr3(frame if which == 0 else compiler.roots[which % len(compiler.roots)])
        else:
            compiler.invlpg(linear(*rest))
    compiler.mov_cr3(compiler.cr3)
    program = compiler.program
    program.after = dict(compiler.memory.qwords)
    program.cr3_after, program.pdptes_after = compiler.cr3, compiler.pdptes
    program.flushed = program.outcomes[-1] is None
    return program


# a list of lists is on average longer than a list, and shrinks as well
_parts = st.lists(st.lists(operations, min_size=1, max_size=30), min_size=1, max_size=30)
_operations = _parts.map(lambda parts: [choice for part in parts for choice in part])
programs = st.builds(compile_program, all_regimes, st.integers(0, 1 << 20), _operations)


undisciplined = st.builds(compile_program, all_regimes, st.integers(0, 1 << 20), _operations, st.just(False))
