"""Every combination of the conditions of a guest-physical access under AMD's nested paging, kernel against
specification; and what both say against the closed form of its rules (npt.md §2-§4).

Two entries take every variant of their bits, the host's registers and the kind of the reference every value.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator

import pytest

import fastmmu
from fastmmu import reference as ref
from fastmmu.dtypes import StepKind
from fastmmu.reference.paging import npt as spec
from tests.conformance.cases import GpaCase
from tests.conformance.differences import differences
from tests.conformance.kernel import KernelAdapter, kernel_eptp, observed
from tests.conformance.spec import observed as specified
from tests.support.access_product import Entry, Tables, memory_of, words

GLA = 0x7FFF_1234_5678
WIDTH = 46
Pair = tuple[int, int]
PRESENT, WRITABLE, USER, XD, RESERVED, ACCESSED, DIRTY = (int(bit) for bit in Entry)
KINDS = ("r", "w", "rw", "x", "guest entry read", "guest entry updated")
PLACES = [(levels, leaf, upper) for levels in (4, 5) for leaf in (1, 2, 3) for upper in range(leaf + 1, levels + 1)
          if levels == 4 or upper == 5]  # fmt: skip


class Host(enum.IntFlag):
    """Registers of the host, as of VMRUN."""

    NXE = 1


def entry(level: int, bits: int, target: int | None) -> int:
    value = bits & 7 | bool(bits & XD) << 63 | bool(bits & ACCESSED) << 5
    reserved = bool(bits & RESERVED)
    if target is None:
        page = (bits + 1) << (12 + 9 * (level - 1))
        return value | page | (level > 1) << 7 | bool(bits & DIRTY) << 6 | reserved << (WIDTH if level == 1 else 13)
    return value | target | reserved << (7 if level > 3 else 8 if level == 3 else 51)


def tables(levels: int, leaf: int, upper: int) -> Tables:
    plain = PRESENT | WRITABLE | USER | ACCESSED
    return Tables(levels=levels, leaf=leaf, upper=upper, index_bits=9, entry_size=8, upper_bits=6, leaf_bits=7,
                  plain=plain, make=entry)  # fmt: skip


def reference(kind: str) -> ref.GpaReference:
    """A reference to a guest's structure always writes (APM vol. 2, 15.25.6)."""
    if kind.startswith("guest entry"):
        return ref.GpaReference(rd=True, wr=True, gla=GLA)
    return ref.GpaReference(rd="r" in kind, wr="w" in kind, fe=kind == "x", gla=GLA, translated=True)


def stopped(pair: Pair, kind: str, nxe: bool) -> int | None:
    """EXITINFO1 by the rules alone; None: the access goes through."""
    why = reference(kind)
    code = 4 | 2 * why.wr | (why.fe and nxe) << 4 | 1 << (32 if why.translated else 33)
    for bits in pair:
        if not bits & PRESENT:
            return code
        if bits & RESERVED or (bits & XD and not nxe):
            return code | 9
    upper, leaf = pair
    denied = not upper & leaf & USER or (why.wr and not upper & leaf & WRITABLE) or (why.fe and (upper | leaf) & XD)
    return code | 1 if denied else None


def combinations(t: Tables) -> Iterator[Pair]:
    return ((upper, leaf) for upper in range(1 << t.upper_bits) for leaf in range(1 << t.leaf_bits))


@pytest.mark.parametrize(("levels", "leaf", "upper"), PLACES)
def test_every_two_entries(levels: int, leaf: int, upper: int) -> None:
    """All that go through, and each seventh of what is stopped: kernel, specification and closed form."""
    t = tables(levels, leaf, upper)
    memory = memory_of(t)
    seen: Counter[str] = Counter()
    for nxe in (0, 1):
        npt = ref.Npt(ncr3=t.root, levels=levels, maxphyaddr=WIDTH, nxe=nxe)
        mine = kernel_eptp(npt)
        for kind in KINDS:
            why = reference(kind)
            for number, pair in enumerate(combinations(t)):
                gpa = t.address(*pair)
                if (number + leaf + upper) % 7 and stopped(pair, kind, bool(nxe)) is not None:
                    continue
                case = GpaCase(mem={}, ept=npt, gpa=gpa, why=why)
                want = specified(spec.translate_gpa(memory, npt, gpa, why, write=False))
                got = observed(KernelAdapter.ask_gpa(t.memory, case, mine))
                got["ch"] = t.restore(want["steps"])
                got["steps"] = [step for step in got["steps"] if step[0] != StepKind.DATA]
                wrong = differences(want, got, KernelAdapter.unreported, ("specification", "kernel"))
                assert not wrong, "\n".join([named(t, nxe, kind, pair), *wrong])
                assert want.get("q") == stopped(pair, kind, bool(nxe)), named(t, nxe, kind, pair)
                seen[want["k"]] += 1
    assert t.untouched()
    assert seen["ok"] > 50
    assert seen["npf"] > 1000


def named(t: Tables, nxe: int, kind: str, pair: Pair) -> str:
    """The combination in words."""
    entries = {f"level-{t.upper} entry": Entry(pair[0]), f"level-{t.leaf} leaf": Entry(pair[1])}
    return f"{t.levels}-level NPT: {words(access=kind, host=Host(nxe), **entries)}"


@pytest.mark.parametrize("levels", [4, 5])
def test_an_address_beyond_the_levels_is_not_present(levels: int) -> None:
    """4 levels translate 48 bits."""
    t = tables(levels, 1, 2)
    npt = fastmmu.Npt(t.root, levels=t.levels)
    found = fastmmu.walk_ept(t.memory, npt, 1 << 48 | t.address(7, 7), gla=GLA)
    assert found.fault == fastmmu.Fault.NESTED_PAGE_FAULT
    assert (found.error_code, found.gpa) == (1 << 32 | 4, 1 << 48 | t.address(7, 7))
    assert len(found.steps) == (0 if t.levels == 4 else 1)


def test_reserved_bits_of_each_level() -> None:
    """paging.md §3.3 with what AMD adds: bits 8 and 7 of level 5 and 4, bit 8 of a level-3 entry that is no leaf."""
    memory = fastmmu.PhysicalMemory(0x8000)
    chain = {5: 0x5000, 4: 0x4000, 3: 0x3000, 2: 0x2000, 1: 0x1000}
    plain = {level: (at - 0x1000) | 0x67 if level > 1 else 0x6067 for level, at in chain.items()}
    npt = fastmmu.Npt(0x5000, levels=5, maxphyaddr=46)
    reserved: dict[int, set[int]] = {}
    for level, at in chain.items():
        reserved[level] = set()
        for bit in range(3, 64):
            for each, address in chain.items():
                memory.write64(address, plain[each])
            memory.write64(at, plain[level] | 1 << bit)
            code = fastmmu.walk_ept(memory, npt, 0, gla=0).error_code
            if code is not None and code & 8:
                reserved[level].add(bit)
    high = set(range(46, 52))
    # bit 7 makes a page of an entry of level 3, whose address of 2000H has bit 13, reserved there
    assert reserved == {5: high | {7, 8}, 4: high | {7, 8}, 3: high | {7, 8}, 2: high, 1: high}


def test_pae_entries_lie_in_memory() -> None:
    """Legacy PAE under nested paging (APM vol. 2, 15.25.10): read by each walk, and a bad one is #PF, not #GP."""
    memory = fastmmu.PhysicalMemory(0x20000)
    for at, value in {0x1000: 0x2067, 0x2000: 0x3067, 0x3000: 0xE7, 0x10000: 0x11001, 0x11000: 0x12067,
                      0x12000: 0x15067, 0x10008: 0x11023, 0x10010: 0}.items():  # fmt: skip
        memory.write64(at, value)
    state = fastmmu.GuestState(cr0=0x8000_0031, cr4=0x20, efer=0, cr3=0x10000, pdptes=(1, 1, 1, 1))
    npt = fastmmu.Npt(0x1000)
    found = fastmmu.walk(memory, state, 0x123, eptp=npt)
    assert found.pa == 0x15123
    assert [int(step.hpa) for step in found.steps if step.kind == StepKind.GUEST] == [0x10000, 0x11000, 0x12000]
    codes = [fastmmu.walk(memory, state, la, eptp=npt).error_code for la in (1 << 30, 2 << 30)]
    assert codes == [9, 0]
    with pytest.raises(fastmmu.StateError, match="no PDPTE registers"):
        fastmmu.load_pdpte_registers(memory, state, eptp=npt)
