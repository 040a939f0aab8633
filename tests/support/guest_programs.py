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
from tests.support.cached_translations import Cached
from tests.support.guest_layouts import (
    ALL_FRAMES,
    FRAME,
    FRAMES,
    MAXPHYADDR,
    PS,
    RW,
    US,
    WINDOW_TABLES,
    XD,
    A,
    D,
    G,
    Mode,
    P,
    Regime,
    pdpte_of,
    start_of,
)

__all__ = [
    "GENERAL_PROTECTION",
    "N_EDITS",
    "Access",
    "Came",
    "Instruction",
    "Invlpg",
    "MovCr3",
    "Program",
    "Store",
    "access_of",
    "edited",
    "pdptes_at",
    "programs",
    "undisciplined",
]


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


def access_of(instruction: Access | Store) -> Access:
    """The access that it makes: a store is one of the supervisor."""
    return Access(instruction.la, "w", False) if isinstance(instruction, Store) else instruction


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
