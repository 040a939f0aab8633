"""What a CPU may still hold: kernel and specification give the same answers to random programs of several CPUs, and
the rules one by one."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from fastmmu import BusError, GuestState, PhysicalMemory, StateError
from fastmmu.cpu.may_hold_py import MayHold, SharedTables
from fastmmu.reference.cpu.may_hold import Cpu, Tables
from fastmmu.reference.paging.memory import SparseMemory
from fastmmu.reference.paging.outcome import Mapped, PageFault
from fastmmu.reference.paging.state import State
from fastmmu.reference.paging.walk import walk

BYTES = 1 << 20
ROOT, PDPT, PD, PT, OTHER_PT, OTHER_ROOT = (n << 12 for n in range(1, 7))
P, RW, US, A, D, PS, G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
ALL = P | RW | US | A | D
XD = 1 << 63
REGISTERS: dict[str, int] = {"cr0": 0x8005_0033, "cr3": ROOT | 1, "cr4": 0x77_0EF0, "efer": 0xD01}
PAGES = (0x0000, 0x1000, 0x2000, 0x20_0000, 0x20_1000)
FRAMES = tuple(n << 12 for n in range(0x20, 0x24))


class Both:
    """A machine of several CPUs by the kernel and by the specification: each answer must be the same."""

    def __init__(self, cpus: int) -> None:
        memory = PhysicalMemory(BYTES)
        self.memory = memory
        self.shared = SharedTables(memory)
        self.tables = Tables(SparseMemory(nbytes=BYTES))
        state = GuestState(**REGISTERS, maxphyaddr=40, upper_a="lazy")
        self.kernel = [MayHold(self.shared, state) for _ in range(cpus)]
        self.spec = [Cpu(self.tables, State(**REGISTERS, maxphyaddr=40, upper_a="lazy")) for _ in range(cpus)]
        for at, value in (
            (ROOT, PDPT | ALL), (PDPT, PD | ALL), (PD, PT | ALL), (PD + 8, OTHER_PT | ALL), (OTHER_ROOT, PDPT | ALL),
            *((PT + 8 * i, FRAMES[i] | ALL) for i in range(3)), (OTHER_PT, FRAMES[3] | ALL),
        ):  # fmt: skip
            self.store(at, value)

    def store(self, at: int, value: int) -> None:
        self.shared.store(at, value)
        self.tables.store(at, value)

    def state(self, cpu: int, how: dict[str, bool]) -> State:
        """Of the specification, with the rights of an access."""
        user = how.get("user", False)
        rights = {"cpl": 3 if user else 0, "ac": int(how.get("ac", False)), "implicit": int(how.get("implicit", False))}
        return replace(self.spec[cpu].state, **rights)

    def ask(self, what: str, cpu: int, la: int, access: str, *more: int, **how: bool) -> Any:
        got = getattr(self.kernel[cpu], what)(la, access, *more, **how)
        want = getattr(self.spec[cpu], what)(la, access, *more, self.state(cpu, how))
        assert got == want, (what, cpu, hex(la), access, more, how)
        return got

    def do(self, what: str, cpu: int, *more: Any, **how: Any) -> None:
        getattr(self.kernel[cpu], what)(*more, **how)
        getattr(self.spec[cpu], what)(*more, **how)

    def now(self, cpu: int, la: int, access: str, **how: bool) -> Any:
        return walk(self.tables.memory, self.state(cpu, how), la, access, write=False)


# ---- random programs --------------------------------------------------------------------------------------------


def entry(rng: random.Random) -> tuple[int, int]:
    """An entry and where it goes."""
    level = rng.choice((1,) * 12 + (2, 2, 3))
    value = 0
    for flag, likely in ((P, 0.9), (A, 0.9), (RW, 0.8), (US, 0.9), (D, 0.7), (XD, 0.1), (G, 0.2)):
        value |= flag * (rng.random() < likely)
    if level == 1:
        table = rng.choice((PT, OTHER_PT))
        return table + 8 * rng.randrange(3), value | rng.choice(FRAMES[:2]) | (rng.random() < 0.1) << 59
    if rng.random() < 0.9:
        value = ALL
    if level == 2:
        return PD + 8 * rng.randrange(2), value | rng.choice((PT, PT, OTHER_PT, PS, PS | 0x20_0000, PS | 1 << 13))
    return PDPT, value & ~G | rng.choice((PD, PD, PD, PS))


def how_of(rng: random.Random) -> dict[str, bool]:
    return rng.choice((*({"user": True} for _ in range(6)), {}, {"ac": True}, {"implicit": True}))


def step(both: Both, rng: random.Random, seen: Counter[str]) -> None:
    cpu, access = rng.randrange(len(both.kernel)), rng.choice("rrw")
    la = rng.choice(PAGES[: rng.choice((1, 5))]) + rng.randrange(8)
    if rng.random() < 0.1:
        access = rng.choice(("rw", "x"))
    how = how_of(rng)
    what = rng.random()
    if what < 0.18:
        at, value = entry(rng)
        both.store(at, value if rng.random() < 0.9 else 0)
    elif what < 0.5:
        found = both.now(cpu, la, access, **how)
        old = rng.choice(FRAMES[:2]) | la & 0xFFF
        pa = found.pa if isinstance(found, Mapped) and rng.random() < 0.6 else old
        seen["used " + both.ask("used", cpu, la, access, pa, **how)] += 1
    elif what < 0.62:
        seen["could " + both.ask("could", cpu, la, access, rng.choice(FRAMES) | la & 0xFFF, **how)] += 1
        seen[f"allows {both.ask('allows', cpu, la, access, **how)}"] += 1
        seen["flags " + both.ask("flags", cpu, la, access, **how)] += 1
    elif what < 0.72:
        found = both.now(cpu, la, access, **how)
        code = found.error_code if isinstance(found, PageFault) and rng.random() < 0.7 else rng.randrange(8)
        seen["fault " + both.ask("fault", cpu, la, access, code, **how)] += 1
        if rng.random() < 0.5:
            both.do("page_fault", cpu, la, here=rng.random() < 0.5)
    elif what < 0.77:
        both.do("invlpg", cpu, la)
    elif what < 0.8:
        both.do("invpcid", cpu, rng.randrange(4), rng.randrange(1, 3), la)
    elif what < 0.86:
        both.do("mov_cr3", cpu, rng.choice((ROOT, ROOT, OTHER_ROOT)) | rng.randrange(1, 3) | (rng.random() < 0.8) << 63)
    elif what < 0.88:
        both.do("wrpkru", cpu, rng.choice((0, 0, 1 << 2, 1 << 3)))
    elif what < 0.9:
        both.do("mov_cr4", cpu, both.spec[cpu].state.cr4 ^ rng.choice((1 << 7, 1 << 20, 1 << 21, 1 << 22)))


def test_random_programs() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        rng = random.Random(seed)
        both = Both(rng.randrange(1, 4))
        for _ in range(250):
            step(both, rng, seen)
    assert set(seen) == {
        *(f"{what} {stands}" for what in ("used", "could", "fault", "flags") for stands in ("now", "held", "neither")),
        "allows True",
        "allows False",
    }
    assert min(seen.values()) > 10, seen


# ---- the rules --------------------------------------------------------------------------------------------------


def changed(cpus: int = 2) -> Both:
    """CPU 0 used page 0, and another CPU changed its entry."""
    both = Both(cpus)
    assert both.ask("used", 0, 0x10, "r", FRAMES[0] | 0x10, user=True) == "now"
    both.store(PT, FRAMES[1] | ALL)
    return both


def test_until_its_own_flush_a_cpu_may_use_either() -> None:
    both = changed()
    assert both.ask("used", 0, 0x18, "w", FRAMES[0] | 0x18, user=True) == "held"
    assert both.ask("used", 0, 0x18, "w", FRAMES[1] | 0x18, user=True) == "now"
    assert both.ask("used", 0, 0x18, "w", FRAMES[0] | 0x18, user=True) == "held"
    assert both.ask("used", 0, 0x18, "w", FRAMES[2] | 0x18, user=True) == "neither"


def test_what_it_never_used_a_watched_cpu_does_not_hold_but_a_simulated_one_may() -> None:
    both = changed()
    assert both.ask("used", 1, 0x10, "r", FRAMES[0] | 0x10, user=True) == "neither"
    assert both.ask("could", 1, 0x10, "r", FRAMES[0] | 0x10, user=True) == "held"
    both.do("invlpg", 1, 0x10)
    assert both.ask("could", 1, 0x10, "r", FRAMES[0] | 0x10, user=True) == "neither"


@pytest.mark.parametrize(
    "flush",
    [("invlpg", 0x10), ("mov_cr3", ROOT | 1), ("invpcid", 0, 1, 0x10), ("invpcid", 1, 1, 0), ("invpcid", 2, 0, 0),
     ("invpcid", 3, 0, 0), ("page_fault", 0x10), ("mov_cr4", 0x77_0E70)],
)  # fmt: skip
def test_its_own_flush_ends_it_and_anothers_does_not(flush: tuple[Any, ...]) -> None:
    both = changed()
    both.do(flush[0], 1, *flush[1:])
    assert both.ask("used", 0, 0x10, "r", FRAMES[0] | 0x10, user=True) == "held"
    both.do(flush[0], 0, *flush[1:])
    assert both.ask("used", 0, 0x10, "r", FRAMES[0] | 0x10, user=True) == "neither"
    assert both.ask("could", 0, 0x10, "r", FRAMES[0] | 0x10, user=True) == "neither"


@pytest.mark.parametrize(
    "other", [("invlpg", 0x1010), ("mov_cr3", ROOT | 1 | 1 << 63), ("invpcid", 0, 2, 0x10), ("invpcid", 1, 2, 0)]
)
def test_what_does_not_cover_it_leaves_it(other: tuple[Any, ...]) -> None:
    both = changed()
    both.do(other[0], 0, *other[1:])
    assert both.ask("used", 0, 0x10, "r", FRAMES[0] | 0x10, user=True) == "held"


def test_a_pcid_is_a_cpus_own() -> None:
    both = changed()
    both.do("mov_cr3", 0, ROOT | 2)
    assert both.ask("used", 0, 0x10, "r", FRAMES[0] | 0x10, user=True) == "neither"
    both.do("mov_cr3", 0, ROOT | 1 | 1 << 63)
    assert both.ask("used", 0, 0x10, "r", FRAMES[0] | 0x10, user=True) == "held"


def test_a_table_of_an_upper_entry_may_be_held() -> None:
    both = Both(1)
    both.store(PD, OTHER_PT | ALL)
    assert both.ask("could", 0, 0x10, "r", FRAMES[0] | 0x10, user=True) == "held"
    both.store(PT, FRAMES[2] | ALL)
    assert both.ask("could", 0, 0x10, "r", FRAMES[2] | 0x10, user=True) == "held"  # the old table, as it is


def test_a_write_needs_the_dirty_flag_held() -> None:
    both = Both(1)
    both.store(PT, FRAMES[0] | ALL & ~D)
    assert both.ask("used", 0, 0x10, "r", FRAMES[0] | 0x10, user=True) == "now"
    both.store(PT, 0)
    assert both.ask("used", 0, 0x10, "r", FRAMES[0] | 0x10, user=True) == "held"
    assert both.ask("used", 0, 0x10, "w", FRAMES[0] | 0x10, user=True) == "neither"
    assert both.ask("fault", 0, 0x10, "w", 0x6, user=True) == "now"
    assert both.ask("fault", 0, 0x10, "w", 0x7, user=True) == "neither"


def test_what_cannot_be() -> None:
    memory = PhysicalMemory(BYTES)
    with pytest.raises(BusError, match="give a larger one"):
        SharedTables(memory).store(BYTES, 1)
    with pytest.raises(StateError, match="4-level"):
        MayHold(SharedTables(memory), GuestState(cr4=0xA0 | 1 << 12))
