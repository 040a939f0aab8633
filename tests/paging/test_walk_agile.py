"""Agile paging's walk: the kernel beside the specification, nested paging and shadow tables (agile.md §1-§3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import TLB, Eptp, Fault, GuestState, Npt, PhysicalMemory, StateError, walk
from fastmmu import reference as ref
from fastmmu._walk import WalkResult, walk_switched
from fastmmu.reference.paging.agile import SWITCH, references, walk_agile

Pick = Callable[[Sequence[Any]], Any]
ENTRIES, FRAMES = 512, 256
FIRST = 0x2000  # guest frame; those that follow lie at frames of the host in the order in which they are made
P, RW, US, A, D, G, XD, RESERVED = 1, 2, 4, 0x20, 0x40, 0x100, 1 << 63, 1 << 50
FRAME = RESERVED - 1 & ~0xFFF
RIGHTS = (RW | US, RW | US, RW | US, RW, US, RW | US | XD)
NAMES = {
    Fault.NONE: ref.Mapped,
    Fault.PAGE_FAULT: ref.PageFault,
    Fault.EPT_VIOLATION: ref.EptViolation,
    Fault.EPT_MISCONFIG: ref.EptMisconfig,
}


class World:
    """Guest tables, an EPT and shadow tables for a few addresses, made by `pick`; the shadow tables lead to the guest's
    own from a level on that `pick` chooses for each, or nowhere else than the guest's tables do."""

    def __init__(self, pick: Pick, levels: int, switches: tuple[int, ...], clean: bool = False) -> None:
        self.pick, self.levels, self.clean = pick, levels, clean
        self.memory = PhysicalMemory.from_array(np.zeros(FRAMES * ENTRIES, np.uint64))
        self.words = self.memory.u64
        self.used, self.gpages = 1, FIRST
        self.backing: dict[int, int] = {}
        self.ept_root = self.frame()
        self.guest_root, self.shadow_root = self.gpage(), self.frame()
        self.addresses: list[int] = []
        offsets = (0, 1, 511)
        for _ in range(6):
            la = 0
            for level in range(levels, 0, -1):
                half = 255 if level == levels else 511
                la |= (pick(offsets) & half) << (3 + 9 * level)
            self.put(la)
            self.addresses.append(la | pick((0, 8, 0xFF8)))
        self.shadow(switches)

    def frame(self) -> int:
        self.used += 1
        assert self.used < FRAMES
        return self.used - 1

    def gpage(self) -> int:
        """A guest-physical page, with a frame behind it that the EPT maps."""
        gpage, frame = self.gpages, self.frame()
        self.gpages += 1
        self.backing[gpage] = frame
        table = self.ept_root
        for level in range(4, 1, -1):
            at = table * ENTRIES + (gpage >> 9 * (level - 1) & 511)
            if not self.words[at]:
                self.words[at] = self.frame() << 12 | 7
            table = int(self.words[at]) >> 12
        rights = 7 if self.clean else self.pick((7, 7, 7, 7, 5, 0))
        self.words[table * ENTRIES + (gpage & 511)] = frame << 12 | 0x30 | rights
        return gpage

    def put(self, la: int) -> None:
        table = self.guest_root
        for level in range(self.levels, 0, -1):
            at = self.backing[table] * ENTRIES + (la >> (3 + 9 * level) & 511)
            if not self.words[at]:
                flags = P | RW | US | A | D if self.clean else self.some(level)
                self.words[at] = self.gpage() << 12 | flags
            table = (int(self.words[at]) & FRAME) >> 12

    def some(self, level: int) -> int:
        pick = self.pick
        flags = pick((P, P, P, P, P, P, 0)) | pick(RIGHTS) | pick((A, A, 0))
        flags |= pick((0, D)) | pick((0, G)) if level == 1 else 0
        return int(flags | pick((0,) * 12 + (RESERVED,)))

    def shadow(self, switches: tuple[int, ...]) -> None:
        """Shadow tables as a VMM makes them: what the guest's tables map, with the rights of all levels in the leaf, or
        in the entry that switches."""
        for la in self.addresses:
            low = self.pick(switches)
            guest, table, every, xd = self.guest_root, self.shadow_root, RW | US, 0
            for level in range(self.levels, 0, -1):
                index = la >> (3 + 9 * level) & 511
                value = int(self.words[self.backing[guest] * ENTRIES + index])
                at = table * ENTRIES + index
                if not value & P or value & RESERVED:
                    break
                self.words[self.backing[guest] * ENTRIES + index] |= A
                every, xd, guest = every & value, xd | value & XD, (value & FRAME) >> 12
                host = self.backing[guest] << 12
                if int(self.words[at]) & SWITCH:
                    break
                if level == 1:
                    dirty = value & D
                    self.words[at] = host | P | A | every & (RW if dirty else 0) | every & US | xd | dirty | value & G
                elif level - 1 == low and not self.words[at]:
                    self.words[at] = host | P | A | every | xd | SWITCH
                    break
                elif not self.words[at]:
                    self.words[at] = self.frame() << 12 | P | RW | US | A
                table = (int(self.words[at]) & FRAME) >> 12

    def state(self, root: int, cpl: int, **more: Any) -> ref.State:
        cr4 = 0x20 | (0x1000 if self.levels == 5 else 0) | more.pop("cr4", 0)
        fixed: Any = {"cr0": 0x8001_0031, "efer": 0xD00, "maxphyaddr": 46, **more}
        return ref.State(cr4=cr4, cr3=root << 12, cpl=cpl, **fixed)


def by_chance(seed: int) -> Pick:
    chance = np.random.default_rng(seed)
    return lambda choices: choices[int(chance.integers(len(choices)))]


def of_kernel(state: ref.State) -> GuestState:
    return GuestState(
        cr0=state.cr0, cr3=state.cr3, cr4=state.cr4, efer=state.efer, cpl=state.cpl, maxphyaddr=state.maxphyaddr,
        upper_a=state.upper_a,
    )  # fmt: skip


def same(got: WalkResult, want: ref.Outcome) -> None:
    assert isinstance(want, NAMES[got.fault])
    kinds = [(int(s["kind"]), int(s["level"]), int(s["hpa"]), int(s["entry"])) for s in got.steps]
    assert kinds == [(int(s.kind), s.level, s.hpa, s.entry) for s in want.steps]
    if isinstance(want, ref.Mapped):
        assert (got.pa, got.gpa) == (want.pa, want.gpa)
        assert got.rights == (bool(want.us), bool(want.rw), bool(want.xd))
    elif isinstance(want, ref.PageFault):
        assert got.error_code == want.error_code
    elif isinstance(want, ref.EptViolation):
        assert (got.qualification, got.gpa) == (want.qualification, want.gpa)


SEEN: Counter[tuple[str, int]] = Counter()


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    levels=st.sampled_from((4, 4, 5)),
    cpl=st.sampled_from((0, 3)),
    ad=st.booleans(),
    cr4=st.sampled_from((0, 1 << 20, 1 << 21, 1 << 7)),
    upper_a=st.sampled_from(("eager", "lazy")),
    switched_root=st.booleans(),
)
def test_kernel_equals_specification(
    seed: int, levels: int, cpl: int, ad: bool, cr4: int, upper_a: str, switched_root: bool
) -> None:
    check_against_specification(seed, levels, cpl, ad, cr4, upper_a, switched_root)


def check_against_specification(
    seed: int, levels: int, cpl: int, ad: bool, cr4: int, upper_a: str, switched_root: bool
) -> None:
    pick = by_chance(seed)
    world = World(pick, levels, (0, 1, 2, 3, levels - 1))
    hardware = world.state(world.shadow_root, cpl, cr4=cr4)
    state = world.state(world.guest_root, cpl, cr4=cr4, upper_a=upper_a)
    eptp = world.ept_root << 12 | ad << 6 | 0x1E
    ept = ref.Ept(eptp=eptp, caps=ref.EptCap.ALL, maxphyaddr=46)
    root = world.backing[world.guest_root] << 12 if switched_root and pick((True, False)) else None
    for la in world.addresses:
        access = pick(("r", "w", "rw", "x"))
        memory = world.words.copy()
        want, nested = walk_agile(ref.ArrayMemory(memory), hardware, state, la, access, ept=ept, root=root)
        shadow = of_kernel(hardware) if root is None else root
        got, walked = walk_switched(
            world.memory,
            of_kernel(state),
            la,
            shadow=shadow,
            eptp=Eptp(eptp, maxphyaddr=46),
            access=access,
            set_ad=True,
        )
        same(got, want)
        assert walked == nested
        assert np.array_equal(memory, world.words)
        SEEN[type(want).__name__, nested] += 1


def test_chance_gets_everywhere() -> None:
    """Of the property above, which ran before: each outcome at each level of switching."""
    for seed in range(60):
        check_against_specification(seed, 4, 3, False, 0, "lazy", False)
    assert all(SEEN[name, nested] for nested in (1, 2, 3) for name in ("Mapped", "PageFault", "EptViolation"))
    assert SEEN["Mapped", 0]
    assert SEEN["PageFault", 0]


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("seed", range(20))
def test_it_translates_as_nested_paging_and_shadow_tables_do(seed: int, levels: int) -> None:
    """What is well-formed and backed: the same page, the same rights, wherever the walk switches."""
    for nested in range(levels + 1):
        world = World(by_chance(seed), levels, (nested,), clean=True)
        state, eptp = of_kernel(world.state(world.guest_root, 3)), Eptp(world.ept_root << 12 | 0x1E, maxphyaddr=46)
        shadow: GuestState | int = world.backing[world.guest_root] << 12
        if nested < levels:
            shadow = of_kernel(world.state(world.shadow_root, 3))
        for la in world.addresses:
            two = walk(world.memory, state, la, eptp=eptp)
            found, walked = walk_switched(world.memory, state, la, shadow=shadow, eptp=eptp)
            assert (found.fault, found.pa, found.rights, walked) == (two.fault, two.pa, two.rights, nested)
            assert found.guest_refs + found.ept_refs == references(levels, nested, 4)
            assert two.guest_refs + two.ept_refs == references(levels, levels + 1, 4)


def test_references_by_switch_level() -> None:
    """The paper's table: 4 to 24."""
    assert [references(4, nested, 4) for nested in range(6)] == [4, 8, 12, 16, 20, 24]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), levels=st.sampled_from((4, 5)), walk_caches=st.booleans())
def test_caches_change_no_outcome(seed: int, levels: int, walk_caches: bool) -> None:
    """Walks that use and fill caches end as walks from memory do, in no more references, whatever came before."""
    pick = by_chance(seed)
    world = World(pick, levels, (0, 1, 2, levels - 1))
    state, hardware = of_kernel(world.state(world.guest_root, 3)), of_kernel(world.state(world.shadow_root, 3))
    eptp, tlb = Eptp(world.ept_root << 12 | 0x5E, maxphyaddr=46), TLB("skylake" if walk_caches else "strict")
    for la in world.addresses * 3:
        access = pick(("r", "w", "x"))
        plain, nested = walk_switched(world.memory, state, la, shadow=hardware, eptp=eptp, access=access, set_ad=True)
        cached, walked = walk_switched(
            world.memory, state, la, shadow=hardware, eptp=eptp, access=access, set_ad=True, tlb=tlb
        )
        assert (cached.fault, cached.pa, cached.error_code) == (plain.fault, plain.pa, plain.error_code)
        if not plain.fault:
            assert cached.rights == plain.rights
            assert cached.guest_refs <= plain.guest_refs
            assert cached.ept_refs <= plain.ept_refs
            assert (walked > 0) == (nested > 0)


def test_a_walk_goes_on_in_nested_mode_from_what_is_cached() -> None:
    world = World(by_chance(1), 4, (2,), clean=True)
    state, hardware = of_kernel(world.state(world.guest_root, 3)), of_kernel(world.state(world.shadow_root, 3))
    eptp, tlb, la = Eptp(world.ept_root << 12 | 0x5E, maxphyaddr=46), TLB("skylake"), world.addresses[0]
    first, again = (
        walk_switched(world.memory, state, la, shadow=hardware, eptp=eptp, set_ad=True, tlb=tlb) for _ in range(2)
    )
    assert (first[0].guest_refs, first[0].ept_refs, first[1]) == (4, 5, 2)  # the EPT's own walk caches, within the walk
    assert (again[0].guest_refs, again[0].ept_refs, again[1]) == (1, 0, 1)  # the PDE cache; both mappings of the EPT


def test_what_it_does_not_take() -> None:
    world = World(by_chance(1), 4, (1,), clean=True)
    state = of_kernel(world.state(world.guest_root, 3))
    with pytest.raises(StateError, match="an EPT"):
        walk_switched(world.memory, state, 0, shadow=state, eptp=Npt(world.ept_root << 12))
    with pytest.raises(StateError, match="4 levels, or 5"):
        walk_switched(world.memory, state, 0, shadow=state.replace(cr4=0x1020), eptp=world.ept_root << 12 | 0x1E)
