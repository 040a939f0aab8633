"""A guest cannot tell the schemes apart: random programs that edit their page tables (kvm_policy.md §13 P1-P4).

FASTMMU_EXAMPLES=N runs N programs, at random, instead of the few that are the same each time.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from fastmmu import Config, GuestState, Machine, StateError, reference
from fastmmu.reference import guest
from fastmmu.reference.modes import IDENTITY_MAP
from tests.support.guest_programs import (
    ALL_FRAMES,
    FRAME,
    FRAMES,
    GENERAL_PROTECTION,
    PS,
    RW,
    US,
    WINDOW,
    XD,
    A,
    Access,
    Came,
    D,
    Instruction,
    Invlpg,
    Mode,
    MovCr3,
    P,
    Program,
    Regime,
    Store,
    pdptes_at,
    programs,
    start,
    undisciplined,
)
from tests.support.vmm_tables import leaves

SMALL = Config(memory="64M")
TINY_TLB = {"l1d": "2/1", "l1i": "1/1", "stlb": "4/4"}
SCHEMES = [
    SMALL,
    SMALL.replace(**TINY_TLB),
    *(
        SMALL.replace(mmu=mmu, vpid=vpid, host_pages=host_pages)
        for mmu in ("shadow", "ept")
        for vpid in (False, True)
        for host_pages in ("4k", "2m")
    ),
    SMALL.replace(mmu="shadow", vpid=True, **TINY_TLB),
]
WORDS = np.concatenate([np.arange(frame >> 3, (frame >> 3) + 512) for frame in ALL_FRAMES])

examples = settings(
    max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "60")), derandomize="FASTMMU_EXAMPLES" not in os.environ
)


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


@examples
@given(programs)
def test_every_scheme_does_what_the_specification_says(program: Program) -> None:
    """Addresses, #PF with CR2 and error code, and all of memory at the end, A and D flags among it."""
    want = contents(program.after)
    for config in SCHEMES:
        machine = machine_for(config, program.regime, program.cr3, program.before)
        exits = 0
        for number, (instruction, came) in enumerate(zip(program.instructions, program.outcomes, strict=True)):
            assert execute(machine, instruction) == came, f"{config.name}, instruction {number}: {program!r}"
            before, exits = exits, machine.counters()["vm_exits"]
            # P3. Under EPT a page of each table and one of data; under shadow paging what is filled, emulated or
            # reflected, and twice only for a write to a page that the first time made a table of.
            assert exits - before <= {"native": 0, "ept": 6, "shadow": 2}[config.mmu]
        assert differences(machine.guest_memory.u64[WORDS], want) == {}, f"{config.name}: {program!r}"
        counters = machine.counters()
        assert counters["ept_spurious"] == counters["mmio"] == 0
        check_vmm_tables(machine, program)


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


# ---- without the invalidations that the architecture asks for ----------------------------------------------------


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


@examples
@given(undisciplined)
def test_a_guest_that_does_not_invalidate_sees_nothing_that_no_table_said(program: Program) -> None:
    """Stale translations are legal, others are not; and a fault is one of the tables as they are (tlb.md §1.1)."""
    for config in SCHEMES[:3] + SCHEMES[5::4]:
        machine = machine_for(config, program.regime, program.cr3, program.before)
        history = History(machine, program)
        for instruction in program.instructions:
            came = execute(machine, instruction)
            if isinstance(instruction, MovCr3) and came is None:
                history.load(instruction.cr3)
            if came in (None, GENERAL_PROTECTION):
                continue
            la, access, user = (*instruction[:1], "w", False) if isinstance(instruction, Store) else instruction
            if came.gpa is None:
                state = program.regime.state(history.cr3, history.pdptes, user=user)
                outcome = reference.walk(history.memory, state, la, access, write=False)
                assert isinstance(outcome, reference.PageFault)
                assert came[1:] == (outcome.error_code, outcome.cr2)
            else:
                assert history.allows(la, access, user, came.gpa), f"{config.name}: {program!r}"
            history.update()


# ---- what random programs might miss ---------------------------------------------------------------------------


def scheme_name(config: Config) -> str:
    return f"{config.name}-{config.backing}" + ("-tiny" if config.l1d else "")


@pytest.fixture(params=SCHEMES, ids=scheme_name)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param


ALL = P | RW | US | A | D
ROOT, PDPT, PD, PT, DATA, OTHER = 0, 0x1000, 0x2000, 0x3000, 0x20_0000, 0x20_1000
PLAIN = {ROOT: PDPT | ALL, PDPT: PD | ALL, PD: PT | ALL, PT: DATA | ALL, PT + 8: OTHER | ALL}


def test_the_root_is_written_while_in_use(config: Config) -> None:
    """Through a page that user mode may write, too: the new address space is there at once after CR3 is loaded."""
    memory = {**PLAIN, PT + 16: ROOT | ALL, ROOT + 8: 0}
    machine = machine_for(config, Regime(), ROOT, memory)
    second = 1 << 39
    assert machine.access(second, "r") == (None, 0, second)
    assert machine.store(0x2008, PDPT | ALL).gpa == ROOT + 8
    assert machine.access(second | 0x1123, "r", user=True).gpa == OTHER | 0x123
    assert machine.store(0x2008, 0).gpa == ROOT + 8
    machine.mov_cr3(ROOT)
    assert machine.access(second, "w", user=True) == (None, 6, second)
    assert machine.access(0x2000, "w", user=True).gpa == ROOT


def test_one_table_serves_at_two_levels(config: Config) -> None:
    """PD[1] points to PD: at 2 MB, PD is the page table; the edit of an entry is one of both levels."""
    machine = machine_for(config, Regime(), ROOT, {**PLAIN, PD + 8: PD | ALL})
    assert machine.access(0x1000).gpa == OTHER
    assert machine.access(0x20_0000).gpa == PT  # PD[0] as a page-table entry
    assert machine.access(0x20_1000).gpa == PD  # PD[1], itself
    assert machine.store(0x20_1000, OTHER | ALL).gpa == PD  # PD[0] through itself
    machine.mov_cr3(ROOT)
    assert machine.access(0x20_0000).gpa == OTHER
    assert machine.access(0x1000) == (None, 0, 0x1000)  # OTHER, which is empty, is the page table now
    assert machine.store(0x20_0008, DATA | ALL).gpa == OTHER + 8
    assert machine.access(0x1000).gpa == DATA


def test_dirty_is_set_again_after_it_was_cleared_and_the_page_invalidated(config: Config) -> None:
    machine = machine_for(config, Regime(), ROOT, {**PLAIN, PT + 16: PT | ALL})
    words = machine.guest_memory.u64
    assert machine.access(0x1000, "w", user=True).gpa == OTHER
    assert machine.store(0x2008, OTHER | ALL & ~(A | D)).gpa == PT + 8
    machine.invlpg(0x1000)
    assert machine.access(0x1000, "r", user=True).gpa == OTHER
    assert int(words[PT + 8 >> 3]) & (A | D) == A
    assert machine.access(0x1000, "w", user=True).gpa == OTHER
    assert int(words[PT + 8 >> 3]) & (A | D) == A | D


@pytest.mark.parametrize("window", [0x2000, 0x60_1000], ids=["4k", "2m"])
def test_a_page_becomes_a_table_after_it_was_written(config: Config, window: int) -> None:
    """No translation, small or large, that lets the guest write it unseen may be left (kvm_policy.md §2.2)."""
    memory = {PT + 16: OTHER | ALL, PT + 24: PD | ALL, PD + 24: DATA | ALL | PS}
    machine = machine_for(config, Regime(), ROOT, {**PLAIN, **memory})
    assert machine.store(window, DATA | ALL).gpa == OTHER
    assert machine.store(0x3008, OTHER | ALL).gpa == PD + 8
    assert machine.access(0x20_0000).gpa == DATA
    assert machine.store(window, PT | ALL).gpa == OTHER
    machine.invlpg(0x20_0000)
    assert machine.access(0x20_0000).gpa == PT


def test_address_spaces_alternate(config: Config) -> None:
    """One address, two roots: loaded again, each has its own page."""
    second, pdpt, pd, pt = (0x40_0000 + 4096 * i for i in range(4))
    memory = {second: pdpt | ALL, pdpt: pd | ALL, pd: pt | ALL, pt: OTHER | ALL}
    machine = machine_for(config, Regime(), ROOT, {**PLAIN, **memory})
    for _ in range(3):
        for root, frame in ((ROOT, DATA), (second, OTHER)):
            machine.mov_cr3(root)
            assert machine.access(0).gpa == frame


def test_supervisor_writes_read_only_pages_without_write_protection(config: Config) -> None:
    """CR0.WP = 0, in turn with reads and writes of user mode (kvm_policy.md §2.1)."""
    machine = machine_for(config, Regime(wp=False, smep=True), ROOT, {**PLAIN, PT: DATA | ALL & ~RW})
    for _ in range(2):
        assert machine.access(0, "w").gpa == DATA
        assert machine.access(0, "x") == (None, 0x11, 0)  # writable for the supervisor, but no page of its own
        assert machine.access(0, "r", user=True).gpa == DATA
        assert machine.access(0, "w", user=True) == (None, 7, 0)
        assert machine.access(0, "x", user=True).gpa == DATA


def test_a_large_page_over_a_table_in_use(config: Config) -> None:
    """The page is cut up, and the table found written (kvm_policy.md §4.3)."""
    machine = machine_for(config, Regime(), ROOT, {**PLAIN, PD + 8: ALL | PS})
    for gpa in (PT, PD, ROOT):
        assert machine.access(0x20_0000 | gpa, "w", user=True).gpa == gpa
    assert machine.access(0x1000).gpa == OTHER  # the tables are shadowed now
    assert machine.access(0x3F_F000, "w", user=True).gpa == 0x1F_F000
    assert machine.store(0x20_0000 | PT + 8, DATA | ALL | XD).gpa == PT + 8
    machine.invlpg(0x1000)
    assert machine.access(0x1000, "r").gpa == DATA
    assert machine.access(0x1000, "x") == (None, 0x11, 0x1000)


def test_one_table_is_reached_with_different_rights(config: Config) -> None:
    """What one way to a page table allows another may deny (role.access of kvm_policy.md §1)."""
    memory = {**PLAIN, PD + 8: PT | ALL & ~RW, PD + 16: PT | ALL & ~US, PD + 24: PT | ALL | XD}
    machine = machine_for(config, Regime(), ROOT, memory)
    for _ in range(2):
        for number, denied in enumerate([(), ("w",), ("r", "w", "x"), ("x",)]):
            for access, code in (("r", 5), ("w", 7), ("x", 0x15)):
                came = machine.access(number << 21 | 0x1008, access, user=True)
                assert came == ((None, code, number << 21 | 0x1008) if access in denied else (OTHER | 8, None, None))


def test_window_of_programs(config: Config) -> None:
    """The programs' window shows every frame, also with a root that any frame may become."""
    cr3, memory = start(5)
    machine = machine_for(config, Regime(), cr3, memory)
    for root in (cr3, *FRAMES):
        machine.mov_cr3(root)
        for frame in FRAMES:
            assert machine.access(WINDOW + frame + 8, "rw").gpa == frame + 8
