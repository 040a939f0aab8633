"""Every combination of the conditions of an access: 4-level, PAE and 32-bit paging, kernel against specification.

In the default run 32-bit paging goes through its full product. With the other modes every combination of two entries
meets control bits, kind of access and knob in a choice in which each three of those take all values together.
FASTMMU_EXHAUSTIVE=1 takes the full products of PAE and 4-level paging as well.
"""

from __future__ import annotations

import enum
import functools
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastmmu
from fastmmu import reference as ref
from fastmmu.dtypes import ALL_ONES
from tests.conformance.differences import differences
from tests.conformance.kernel import WORDS, KernelAdapter, kernel_state, observed
from tests.conformance.spec import observed as specified
from tests.support.access_product import Entry, Tables, covering, memory_of, words

EXHAUSTIVE = bool(os.environ.get("FASTMMU_EXHAUSTIVE"))
FAULTS = {word: int(fault) for fault, word in WORDS.items()}
ACCESSES = ("r", "w", "rw", "x")
KEY = 9  # of the leaves in long mode
Pair = tuple[int, int]


class Cpu(enum.IntFlag):
    """Registers, who accesses, and the knob."""

    WP = enum.auto()
    NXE = enum.auto()
    SMEP = enum.auto()
    SMAP = enum.auto()
    AC = enum.auto()
    PKE = enum.auto()
    PKS = enum.auto()
    KEY_AD = enum.auto()
    KEY_WD = enum.auto()
    CPL3 = enum.auto()
    IMPLICIT = enum.auto()
    LAZY_A = enum.auto()


KEYS = Cpu.PKE | Cpu.PKS | Cpu.KEY_AD | Cpu.KEY_WD
REGISTERS = {
    ref.Mode.LEGACY32: {"cr0": 0x8000_0031, "cr4": 0x10, "efer": 0},
    ref.Mode.PAE: {"cr0": 0x8000_0031, "cr4": 0x20, "efer": 0},
    ref.Mode.LEVEL4: {"cr0": 0x8000_0031, "cr4": 0x20, "efer": 0x500},
    ref.Mode.LEVEL5: {"cr0": 0x8000_0031, "cr4": 0x1020, "efer": 0x500},
}
LEVELS = {ref.Mode.LEGACY32: 2, ref.Mode.PAE: 2, ref.Mode.LEVEL4: 4, ref.Mode.LEVEL5: 5}
PLACES = {
    mode: [
        (leaf, upper)
        for leaf in range(1, min(LEVELS[mode], 3) + 1)
        for upper in (range(leaf + 1, LEVELS[mode] + 1) if leaf < LEVELS[mode] else (0,))
        if mode is not ref.Mode.LEVEL5 or upper == 5  # all else is as with 4 levels
    ]
    for mode in LEVELS
}


# ---- what a combination is -----------------------------------------------------------------------------------------


def entry(mode: ref.Mode, level: int, bits: int, target: int | None) -> int:
    """The guest entry with these conditions; leaves of long mode have a protection key."""
    flags = Entry(bits)
    value = bits & 7 | (Entry.ACCESSED in flags) << 5 | (Entry.DIRTY in flags) << 6
    if mode is ref.Mode.LEGACY32:
        page = (bits + 1) << (22 if level == 2 else 12)
        reserved = 1 << 21 if level == 2 and target is None else 0
    else:
        page = (bits + 1) << (12 + 9 * (level - 1))
        reserved = 1 << 7 if level > 3 else 1 << 13 if level > 1 and target is None else 1 << 46
        value |= (Entry.XD in flags) << 63
        value |= KEY << 59 if target is None and mode is not ref.Mode.PAE else 0
    value |= reserved if Entry.RESERVED in flags else 0
    return value | (page | (level > 1) << 7 if target is None else target)


def tables(mode: ref.Mode, leaf: int, upper: int) -> Tables:
    narrow = mode is ref.Mode.LEGACY32
    return Tables(
        levels=LEVELS[mode],
        leaf=leaf,
        upper=upper,
        index_bits=10 if narrow else 9,
        entry_size=4 if narrow else 8,
        upper_bits=6,
        leaf_bits=7,
        plain=Entry.PRESENT | Entry.WRITABLE | Entry.USER | Entry.ACCESSED,
        make=functools.partial(entry, mode),
    )


PRESENT, XD, RESERVED = int(Entry.PRESENT), int(Entry.XD), int(Entry.RESERVED)


def settled(mode: ref.Mode, nxe: bool, bits: int, *, can_be_reserved: bool = True) -> tuple[int, bool]:
    """(entry without bits that say nothing, whether it stops the walk): one variant for each way to stop it."""
    if not bits & PRESENT:
        return 0, True
    if mode is ref.Mode.LEGACY32:
        bits &= ~XD
    if can_be_reserved and (bits & RESERVED or (bits & XD and not nxe)):
        return PRESENT | RESERVED, True
    return bits & ~RESERVED, False


def decisive(t: Tables, mode: ref.Mode, nxe: bool) -> list[Pair]:
    """For each combination the one that stands for it before the specification."""
    narrow = mode is ref.Mode.LEGACY32
    found = []
    for pair in t.combinations():
        upper, stops = settled(mode, nxe, pair[0], can_be_reserved=not narrow) if t.upper else (0, False)
        leaf = 0 if stops else settled(mode, nxe, pair[1], can_be_reserved=not narrow or t.leaf == 2)[0]
        found.append((upper, leaf))
    return found


def state_of(mode: ref.Mode, cpu: Cpu) -> ref.State:
    r = REGISTERS[mode]
    rights = 0x5555_5555 * (Cpu.KEY_AD in cpu) | 0xAAAA_AAAA * (Cpu.KEY_WD in cpu)
    cr4 = (Cpu.SMEP in cpu) << 20 | (Cpu.SMAP in cpu) << 21 | (Cpu.PKE in cpu) << 22 | (Cpu.PKS in cpu) << 24
    root = LEVELS[mode] << 12
    return ref.State(
        cr0=r["cr0"] | (Cpu.WP in cpu) << 16,
        cr3=root,
        cr4=r["cr4"] | cr4,
        efer=r["efer"] | (Cpu.NXE in cpu) << 11,
        cpl=3 if Cpu.CPL3 in cpu else 0,
        ac=int(Cpu.AC in cpu),
        implicit=int(Cpu.IMPLICIT in cpu),
        pkru=rights,
        pkrs=rights,
        pdpte=(root | 1, 0, 0, 0),
        maxphyaddr=46,
        upper_a="lazy" if Cpu.LAZY_A in cpu else "eager",
    )


def legal(mode: ref.Mode) -> Iterator[tuple[Cpu, str]]:
    """Control bits and accesses, without those that only differ in what the access does not look at."""
    who = (Cpu(0), Cpu.CPL3, Cpu.CPL3 | Cpu.IMPLICIT)
    nxe = (Cpu(0),) if mode is ref.Mode.LEGACY32 else (Cpu(0), Cpu.NXE)
    smap = (Cpu(0), Cpu.SMAP, Cpu.SMAP | Cpu.AC)
    keys = [Cpu(0)]
    if mode is ref.Mode.LEVEL4:
        on = (Cpu.PKE, Cpu.PKS, Cpu.PKE | Cpu.PKS)
        keys += [a | b for a in on for b in (Cpu(0), Cpu.KEY_AD, Cpu.KEY_WD, Cpu.KEY_AD | Cpu.KEY_WD)]
    knob = (Cpu(0), Cpu.LAZY_A)
    for parts in itertools.product(who, nxe, (Cpu(0), Cpu.SMEP), knob):
        yield functools.reduce(Cpu.__or__, parts), "x"
    for parts in itertools.product(who, nxe, smap, keys, knob):
        cpu = functools.reduce(Cpu.__or__, parts)
        yield cpu, "r"
        for access, wp in itertools.product(("w", "rw"), (Cpu(0), Cpu.WP)):
            yield cpu | wp, access


def chosen(seed: int) -> Iterator[tuple[Cpu, str]]:
    """Each three of the control bits, the two bits of the access and the knob, in every combination."""
    for word in covering(len(Cpu) + 2, 3, seed):
        yield Cpu(word & (1 << len(Cpu)) - 1), ACCESSES[word >> len(Cpu)]


# ---- the comparison ------------------------------------------------------------------------------------------------


def check(mode: ref.Mode, leaf: int, upper: int, pairs: Iterable[tuple[Cpu, str]]) -> Counter[str]:
    """Every combination of entries under these control bits: `walk` for those that decide, `translate` for all."""
    t = tables(mode, leaf, upper)
    memory = memory_of(t)
    every = np.array(list(t.combinations()))
    las = np.array([t.address(*pair) for pair in every.tolist()], np.uint64)
    stands_for: dict[bool, tuple[list[Pair], npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
    for nxe in (False, True):
        deciding, number = np.unique(decisive(t, mode, nxe), axis=0, return_inverse=True)
        moved = (every[:, 1] - deciding[number, 1]) << t.shift(t.leaf)  # each leaf has a page of its own
        stands_for[nxe] = [tuple(pair) for pair in deciding.tolist()], number, moved
    seen: Counter[str] = Counter()
    for cpu, access in pairs:
        state = state_of(mode, cpu)
        registers = kernel_state(state)
        deciding, number, moved = stands_for[Cpu.NXE in cpu]
        pa, fault = np.zeros(len(deciding), np.uint64), np.zeros(len(deciding), np.uint8)
        for i, pair in enumerate(deciding):
            la = t.address(*pair)
            want = specified(ref.walk(memory, state, la, access, write=False))
            got = observed(fastmmu.walk(t.memory, registers, la, access=access, set_ad=True))
            got["ch"] = t.restore(want["steps"])
            if want != got:
                found = differences(want, got, KernelAdapter.unreported, ("specification", "kernel"))
                assert not found, "\n".join([named(t, mode, cpu, access, pair), *found])
            pa[i], fault[i] = want.get("pa", ALL_ONES), FAULTS[want["k"]]
            seen[want["k"]] += 1
        assert t.untouched()
        batch = fastmmu.translate(t.memory, registers, las, access=access)
        page = np.where(fault[number] == 0, pa[number] + moved.astype(np.uint64), ALL_ONES)
        for i in np.flatnonzero((batch.pa != page) | (batch.fault != fault[number]))[:1].tolist():
            pytest.fail(
                f"translate: {named(t, mode, cpu, access, tuple(every[i].tolist()))}: specification "
                f"{fault[number][i]} {page[i]:#x}, kernel {batch.fault[i]} {batch.pa[i]:#x}"
            )
        seen["translated"] += len(every)
    return seen


def named(t: Tables, mode: ref.Mode, cpu: Cpu, access: str, pair: Pair) -> str:
    """The combination in words."""
    upper = {f"level-{t.upper} entry": Entry(pair[0])} if t.upper else {}
    parts = {"access": access, "control": cpu, **upper, f"level-{t.leaf} leaf": Entry(pair[1])}
    return f"{mode.name}: {words(**parts)}"


def cases(*modes: ref.Mode) -> pytest.MarkDecorator:
    every = [(mode, leaf, upper) for mode in modes for leaf, upper in PLACES[mode]]
    ids = [f"{mode.name}-leaf{leaf}-upper{upper}" for mode, leaf, upper in every]
    return pytest.mark.parametrize(("mode", "leaf", "upper"), every, ids=ids)


@cases(ref.Mode.LEGACY32)
def test_full_product_of_32_bit_paging(mode: ref.Mode, leaf: int, upper: int) -> None:
    seen = check(mode, leaf, upper, legal(mode))
    print(dict(seen))
    assert seen["ok"] > 500
    assert seen["pf"] > 500


@cases(ref.Mode.PAE, ref.Mode.LEVEL4, ref.Mode.LEVEL5)
def test_every_entry_under_every_three_control_bits(mode: ref.Mode, leaf: int, upper: int) -> None:
    seen = check(mode, leaf, upper, chosen(leaf + 8 * upper))
    print(dict(seen))
    assert seen["ok"] > 100
    assert seen["pf"] > 100


@pytest.mark.skipif(not EXHAUSTIVE, reason="skipped: takes many minutes; FASTMMU_EXHAUSTIVE=1 runs the full product")
@cases(ref.Mode.PAE, ref.Mode.LEVEL4)
def test_full_product(mode: ref.Mode, leaf: int, upper: int) -> None:
    print(f"{mode.name} leaf {leaf} upper {upper}: {dict(check(mode, leaf, upper, legal(mode)))}")


# ---- the comparison itself -----------------------------------------------------------------------------------------


def test_a_choice_covers_every_three() -> None:
    for size in (5, 14):
        found = covering(size, 3)
        assert len(found) < 40
        for bits in itertools.combinations(range(size), 3):
            assert len({tuple(word >> bit & 1 for bit in bits) for word in found}) == 8


@pytest.mark.parametrize(
    ("change", "condition"),
    [({"ac": 1}, "SMAP"), ({"cr0": 0x8001_0031}, ""), ({"pkru": 0, "pkrs": 0}, "KEY_"), ({"cpl": 0}, "CPL3"),
     ({"upper_a": "eager"}, "LAZY_A")],
)  # fmt: skip
def test_a_kernel_that_disregards_a_condition_is_noticed(
    change: dict[str, Any], condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the failure reads as words."""
    right = kernel_state
    monkeypatch.setattr(f"{__name__}.kernel_state", lambda state: right(state).replace(**change))
    with pytest.raises(AssertionError, match=rf"LEVEL4: access \w+, control .*{condition}.* leaf \w+"):
        check(ref.Mode.LEVEL4, 1, 2, chosen(17))


def test_a_batch_that_disregards_a_condition_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fastmmu.translate

    def wrong(memory: fastmmu.PhysicalMemory, state: fastmmu.GuestState, va: Any, access: str) -> fastmmu.Translation:
        return right(memory, state.replace(ac=1), va, access=access)

    monkeypatch.setattr(fastmmu, "translate", wrong)
    with pytest.raises(pytest.fail.Exception, match=r"translate: LEVEL4: access \w+, control .*SMAP.* leaf PRESENT"):
        check(ref.Mode.LEVEL4, 1, 2, chosen(17))
