"""The programs of `guest_programs` on a machine: start, each instruction, and what must hold of memory and tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu import Config, GuestState, Machine, StateError, reference
from fastmmu.reference.kvm.modes import IDENTITY_MAP
from fastmmu.reference.paging import guest
from tests.support.guest_layouts import ALL_FRAMES, FRAME, Mode, P, Regime
from tests.support.guest_programs import (
    GENERAL_PROTECTION,
    Access,
    Came,
    Instruction,
    Invlpg,
    MovCr3,
    Program,
    Store,
    pdptes_at,
)
from tests.support.vmm_tables import leaves

__all__ = ["WORDS", "History", "check_vmm_tables", "contents", "differences", "execute", "machine_for"]

WORDS = np.concatenate([np.arange(frame >> 3, (frame >> 3) + 512) for frame in ALL_FRAMES])
"""Indices of the words of all frames."""


def machine_for(config: Config, regime: Regime, cr3: int, memory: dict[int, int]) -> Machine:
    machine = Machine(config, guest_kernel=False, state=GuestState(**regime.registers(cr3)))
    words = machine.guest_memory.u64
    for gpa, value in memory.items():
        words[gpa >> 3] = value
    return machine


def execute(machine: Machine, instruction: Instruction) -> Came | None:
    match instruction:
        case Access(la, access, user):
            return Came(*machine.access(la, access, user=user))
        case Store(la, value, size):
            return Came(*machine.store(la, value, size))
        case MovCr3(cr3):
            try:
                machine.mov_cr3(cr3)
            except StateError:
                return GENERAL_PROTECTION
        case Invlpg(la):
            machine.invlpg(la)
    return None


def contents(memory: dict[int, int]) -> npt.NDArray[np.uint64]:
    """The words of all frames."""
    words = np.zeros(max(ALL_FRAMES) + 4096 >> 3, np.uint64)
    words[np.array(list(memory), np.int64) >> 3] = np.array(list(memory.values()), np.uint64)
    return words[WORDS]


def differences(have: npt.NDArray[np.uint64], want: npt.NDArray[np.uint64]) -> dict[str, tuple[str, str]]:
    """{gpa: (have, want)} of the words that differ."""
    return {hex(int(WORDS[i]) << 3): (hex(have[i]), hex(want[i])) for i in np.flatnonzero(have != want)}


def check_vmm_tables(machine: Machine, program: Program) -> None:
    """P2, P4: a mapping of the VMM leads where the guest's own tables lead, and allows nothing that they deny."""
    if machine.config.mmu == "ept":
        # without unrestricted guest the identity table is read through EPT: a slot of its own, behind guest memory
        own = {IDENTITY_MAP: machine.config.memory_bytes + (IDENTITY_MAP & 0x1F_FFFF)}
        if program.regime.mode is not Mode.NONE or machine.config.unrestricted:
            own = {}
        for leaf in leaves(machine):
            assert leaf.gpa == own.get(leaf.address, leaf.address)
    if machine.config.mmu != "shadow":
        return
    if not program.flushed:
        return
    memory = reference.SparseMemory(program.after, nbytes=1 << 26)
    state = program.regime._replace(smep=False, smap=False).state(program.cr3_after, program.pdptes_after)
    for leaf in leaves(machine):
        outcome = reference.walk(memory, state, leaf.address, "r", write=False)
        assert isinstance(outcome, reference.Mapped)
        assert outcome.gpa == leaf.gpa
        assert outcome.guest_size >= leaf.size or program.regime.mode is Mode.NONE
        assert not outcome.changes, "a guest entry with A=0 is mapped"
        assert leaf.user <= outcome.us
        assert leaf.x <= 1 - outcome.xd
        assert not leaf.w or outcome.dirty
        # CR0.WP = 0: writable, but for the supervisor alone (kvm_policy.md §2.1)
        assert leaf.w <= outcome.rw or (not program.regime.wp and not leaf.user)


# ---- translations that are out of date -----------------------------------------------------------------------------


class History:
    """Every value that each entry has had, and every root: CR3, or the PDPTE registers of PAE paging."""

    def __init__(self, machine: Machine, program: Program) -> None:
        self.regime = program.regime
        self.layout = program.regime.layout
        self.memory = reference.ArrayMemory(machine.guest_memory.u64)
        size, window = self.layout.size, self.layout.window
        used = {*self.layout.indices, 4, *range(window, window + 3)}
        if size == 4:
            used |= {0, 1, 2, 3, 4, 5, 512, 513, 514}
        words = machine.guest_memory.u64
        self.words = words.view("<u4") if size == 4 else words
        self.places = np.array([frame // size + i for frame in ALL_FRAMES for i in sorted(used)])
        self.now = self.words[self.places]
        self.ever = {int(place) * size: {int(value)} for place, value in zip(self.places, self.now, strict=True)}
        self.pdptes: tuple[int, ...] = ()
        self.roots: set[Any] = set()
        self.load(program.cr3)

    def load(self, cr3: int) -> None:
        self.cr3 = cr3
        if self.regime.mode is Mode.PAE:
            self.pdptes = pdptes_at(self.memory, cr3) or self.pdptes
        self.roots.add(self.pdptes or cr3)

    def update(self) -> None:
        now = self.words[self.places]
        for i in np.flatnonzero(now != self.now):
            self.ever[int(self.places[i]) * self.layout.size].add(int(now[i]))
        self.now = now

    def allows(self, la: int, access: str, user: bool, gpa: int) -> bool:
        """Did any combination of entries, each of any time, lead from la to gpa with rights enough?"""
        if self.regime.mode is Mode.NONE:
            return la == gpa
        state = self.regime.state(0)
        top = len(self.layout.shifts)
        paths = {(root, 1, 1, 0) for root in self.roots}
        if self.regime.mode is Mode.PAE:
            top = 2
            paths = {(root[la >> 30] & FRAME, 1, 1, 0) for root in self.roots if root[la >> 30] & P}
        for level in range(top, 0, -1):
            below = set()
            for table, us, rw, xd in paths:
                for entry in self.ever.get(table + self.layout.index(la, level) * self.layout.size, ()):
                    if not entry & P or entry & guest.reserved_bits(state, entry, level):
                        continue
                    rights = (us & entry >> 2, rw & entry >> 1, xd | entry >> 63)
                    if guest.is_leaf(state, entry, level):
                        offset = la & ((1 << self.layout.shifts[level - 1]) - 1)
                        same = guest.frame_of(state, entry, level) + offset == gpa
                        if same and enough(*rights, access, user, self.regime):
                            return True
                    else:
                        below.add((entry & FRAME, *rights))
            paths = below
        return False


def enough(us: int, rw: int, xd: int, access: str, user: bool, regime: Regime) -> bool:
    if user and not us:
        return False
    if access == "x":
        return not xd and not (regime.smep and us and not user)
    if us and not user and regime.smap and not regime.ac:
        return False
    return access == "r" or bool(rw) or not (user or regime.wp)
