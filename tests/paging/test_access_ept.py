"""Every combination of the conditions of a guest-physical access under EPT, kernel against specification.

Every combination of two EPT entries meets the processor's capabilities, the controls, the kind of the reference and the
rights of its linear address in a choice in which each two of those take all values together; FASTMMU_EXHAUSTIVE=1
takes the full product.
"""

from __future__ import annotations

import enum
import os
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

import fastmmu
from fastmmu import reference as ref
from fastmmu.dtypes import StepKind
from fastmmu.reference.paging.ept import misconfigured
from tests.conformance.cases import GpaCase
from tests.conformance.differences import differences
from tests.conformance.kernel import KernelAdapter, kernel_eptp, observed
from tests.conformance.spec import observed as specified
from tests.support.access_product import Tables, covering, memory_of, words

EXHAUSTIVE = bool(os.environ.get("FASTMMU_EXHAUSTIVE"))
GLA = 0x7FFF_1234_5678
WIDTH = 46
Pair = tuple[int, int]


class Entry(enum.IntFlag):
    """Of an EPT entry; the memory type and D are of leaves."""

    R = enum.auto()
    W = enum.auto()
    X = enum.auto()
    XU = enum.auto()
    RESERVED = enum.auto()
    ACCESSED = enum.auto()
    BAD_TYPE = enum.auto()
    DIRTY = enum.auto()


RESERVED, BAD_TYPE, ACCESSED, DIRTY = (
    int(bit) for bit in (Entry.RESERVED, Entry.BAD_TYPE, Entry.ACCESSED, Entry.DIRTY)
)


class Control(enum.IntFlag):
    """Capabilities, controls, and what the guest's tables say of the linear address."""

    EXECUTE_ONLY = enum.auto()
    MBEC = enum.auto()
    AD = enum.auto()
    ADVANCED_INFO = enum.auto()
    USER = enum.auto()
    WRITABLE = enum.auto()
    NX = enum.auto()


LINEAR = Control.USER | Control.WRITABLE | Control.NX
KINDS = ("r", "w", "rw", "x", "guest entry read", "guest entry updated", "PDPTE load", "r")  # 3 bits choose one
PLACES = [(levels, leaf, upper) for levels in (4, 5) for leaf in (1, 2, 3) for upper in range(leaf + 1, levels + 1)
          if levels == 4 or upper == 5]  # fmt: skip


def entry(level: int, bits: int, target: int | None) -> int:
    flags = Entry(bits)
    value = bits & 7 | (Entry.XU in flags) << 10 | (Entry.ACCESSED in flags) << 8
    if target is None:
        page = (bits + 1) << (12 + 9 * (level - 1))
        value |= page | (level > 1) << 7 | (Entry.DIRTY in flags) << 9 | (3 if Entry.BAD_TYPE in flags else 6) << 3
        return value | (Entry.RESERVED in flags) << (WIDTH if level == 1 else 12)
    return value | target | (Entry.RESERVED in flags) << (7 if level > 3 else 3)


def tables(levels: int, leaf: int, upper: int) -> Tables:
    return Tables(
        levels=levels,
        leaf=leaf,
        upper=upper,
        index_bits=9,
        entry_size=8,
        upper_bits=6,
        leaf_bits=8,
        plain=Entry.R | Entry.W | Entry.X | Entry.XU | Entry.ACCESSED,
        make=entry,
    )


def ept_of(t: Tables, control: Control) -> ref.Ept:
    caps = ref.EptCap.ALL
    caps &= ~(0 if Control.EXECUTE_ONLY in control else ref.EptCap.EXECUTE_ONLY)
    caps &= ~(0 if Control.ADVANCED_INFO in control else ref.EptCap.ADVANCED_INFO)
    eptp = t.root | (t.levels - 1) << 3 | 6 | (Control.AD in control) << 6
    return ref.Ept(eptp=eptp, caps=caps, maxphyaddr=WIDTH, mbec=int(Control.MBEC in control))


def reference(ept: ref.Ept, control: Control, kind: str) -> ref.GpaReference:
    """ept.md §4, the table of accesses."""
    if kind == "PDPTE load":
        return ref.GpaReference(rd=True)
    if kind.startswith("guest entry"):
        return ref.GpaReference(rd=True, wr=ept.ad or kind.endswith("updated"), gla=GLA)
    us, rw, xd = (int(bit in control) for bit in (Control.USER, Control.WRITABLE, Control.NX))
    return ref.GpaReference(
        rd="r" in kind, wr="w" in kind, fe=kind == "x", gla=GLA, translated=True, us=us, rw=rw, xd=xd
    )


def deciding(t: Tables, ept: ref.Ept) -> Iterator[Pair]:
    """Of entries that stop every access one variant each; flags only where they are in use."""
    present = 7 | 8 * ept.mbec
    flags = (0, ACCESSED) if ept.ad else (0,)
    uppers = [rights | flag for rights in range(16) for flag in flags] + [1 | RESERVED]
    dirty = (0, DIRTY) if ept.ad else (0,)
    leaves = [rights | a | d for rights in range(16) for a in flags for d in dirty] + [7 | RESERVED, 7 | BAD_TYPE]
    for upper in uppers:
        value = entry(t.upper, upper, 0)
        passes = upper & present and not misconfigured(ept, value, t.upper)
        yield from ((upper, leaf) for leaf in (leaves if passes else leaves[-3:-2]))


def check(levels: int, leaf: int, upper: int, asked: Iterable[tuple[Control, str]]) -> Counter[str]:
    t = tables(levels, leaf, upper)
    memory = memory_of(t)
    seen: Counter[str] = Counter()
    for control, kind in asked:
        ept = ept_of(t, control)
        eptp, why = kernel_eptp(ept), reference(ept, control, kind)
        for pair in deciding(t, ept):
            gpa = t.address(*pair)
            want = specified(ref.translate_gpa(memory, ept, gpa, why, write=False))
            got = observed(KernelAdapter.ask_gpa(t.memory, GpaCase(mem={}, ept=ept, gpa=gpa, why=why), eptp))
            got["ch"] = t.restore(want["steps"])
            # the kernel makes the access itself too, where the specification only translates
            got["steps"] = [step for step in got["steps"] if step[0] != StepKind.DATA]
            wrong = differences(want, got, KernelAdapter.unreported, ("specification", "kernel"))
            assert not wrong, "\n".join([named(t, control, kind, pair), *wrong])
            seen[want["k"]] += 1
        assert t.untouched()
    return seen


def named(t: Tables, control: Control, kind: str, pair: Pair) -> str:
    """The combination in words."""
    entries = {f"level-{t.upper} entry": Entry(pair[0]), f"level-{t.leaf} leaf": Entry(pair[1])}
    return f"{t.levels}-level EPT: {words(access=kind, control=control, **entries)}"


def legal() -> Iterator[tuple[Control, str]]:
    """All controls; rights of the linear address where the access has one."""
    for word in range(16):
        for kind in dict.fromkeys(KINDS):
            for rights in range(8) if kind in ("r", "w", "rw", "x") else (0,):
                yield Control(word | rights << 4), kind


def chosen(seed: int) -> Iterator[tuple[Control, str]]:
    for word in covering(len(Control) + 3, 2, seed):
        yield Control(word & (1 << len(Control)) - 1), KINDS[word >> len(Control)]


@pytest.mark.parametrize(("levels", "leaf", "upper"), PLACES)
def test_every_two_entries_under_every_two_controls(levels: int, leaf: int, upper: int) -> None:
    seen = check(levels, leaf, upper, chosen(levels + 16 * leaf + upper))
    print(dict(seen))
    assert all(seen[k] > 50 for k in ("ok", "ev", "em")), seen


@pytest.mark.skipif(not EXHAUSTIVE, reason="skipped: takes many minutes; FASTMMU_EXHAUSTIVE=1 runs the full product")
@pytest.mark.parametrize(("levels", "leaf", "upper"), PLACES)
def test_full_product(levels: int, leaf: int, upper: int) -> None:
    print(f"{levels}-level EPT, leaf {leaf}, upper {upper}: {dict(check(levels, leaf, upper, legal()))}")


@pytest.mark.parametrize("control", ["EXECUTE_ONLY", "MBEC", "AD", "ADVANCED_INFO"])
def test_a_kernel_that_disregards_a_control_is_noticed(control: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the failure reads as words."""
    right = kernel_eptp

    def wrong(ept: ref.Ept) -> fastmmu.Eptp:
        eptp = right(ept)
        if control == "AD":
            return fastmmu.Eptp(eptp.value | 0x40, **eptp.options)
        return fastmmu.Eptp(eptp.value, **{**eptp.options, control.lower(): True})

    monkeypatch.setattr(f"{__name__}.kernel_eptp", wrong)
    with pytest.raises(AssertionError, match=r"4-level EPT: access .*, control .*, level-2 entry .*, level-1 leaf "):
        check(4, 1, 2, chosen(17))
