"""The executable specification against itself and against plain arithmetic: what the worked examples do not reach."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from fastmmu import reference as ref
from fastmmu.dtypes import Fault, StepKind
from fastmmu.errors import BusError, StateError
from tests.support.random_scenes import Scene, scenes

CAPS, WALK5 = ref.EptCap.ALL, ref.EptCap.WALK5


def memory(scene: Scene) -> ref.SparseMemory:
    return ref.SparseMemory(scene.mem, scene.cases()[0].nbytes)


# ---- properties of every walk --------------------------------------------------------------------------------


def told(outcome: ref.Outcome) -> dict[str, Any]:
    """The outcome without its trace."""
    return {
        key: value for key, value in dataclasses.asdict(outcome).items() if key not in ("steps", "changes", "pml_index")
    }


@given(scenes())
@settings(max_examples=150, deadline=None)
def test_query_says_what_the_access_does_and_leaves_memory_alone(scene: Scene) -> None:
    for la, access in scene.attempts:
        mem = memory(scene)
        query = ref.walk(mem, scene.state, la, access, ept=scene.ept, write=False)
        assert mem.qwords == scene.mem
        done = ref.walk(mem, scene.state, la, access, ept=scene.ept)
        assert query == done
        left = {change.hpa: change.value for change in done.changes}
        changed = {hpa: value for hpa, value in mem.qwords.items() if value != scene.mem.get(hpa, 0)}
        assert {hpa: left.get(hpa) for hpa in changed} == changed
        for hpa in left.keys() - changed.keys():  # the log has page 0 where a 0 was
            assert scene.ept is not None
            assert scene.ept.pml is not None
            assert (hpa >> 12, left[hpa]) == (scene.ept.pml[0] >> 12, 0)


@given(scenes())
@settings(max_examples=150, deadline=None)
def test_a_second_walk_writes_nothing(scene: Scene) -> None:
    """paging.md §10: with A and D preset there is nothing left to set, unless a table maps itself."""
    if any("points at" in defect for defect in scene.defects):
        return
    for la, access in scene.attempts:
        mem = memory(scene)
        first = ref.walk(mem, scene.state, la, access, ept=scene.ept)
        again = ref.walk(mem, scene.state, la, access, ept=scene.ept)
        if isinstance(first, ref.Mapped):
            assert again.changes == ()
            assert {**told(again), "leaf": 0} == {**told(first), "leaf": 0}


@given(scenes())
@settings(max_examples=150, deadline=None)
def test_error_codes_keep_their_rules(scene: Scene) -> None:
    for la, access in scene.attempts:
        outcome = ref.walk(memory(scene), scene.state, la, access, ept=scene.ept)
        if not isinstance(outcome, ref.PageFault):
            continue
        code = outcome.error_code
        present, reserved, key = code & 1, code & 8, code & 0x20
        assert present or not (reserved or key)
        assert not (reserved and key)
        assert not (key and access == "x")
        assert bool(code & 2) is (access in ("w", "rw"))


@given(scenes(modes=(ref.Mode.LEGACY32, ref.Mode.PAE, ref.Mode.LEVEL4, ref.Mode.LEVEL5)))
@settings(max_examples=150, deadline=None)
def test_mappings_are_what_walks_reach(scene: Scene) -> None:
    """A walk that succeeds ends in a listed page; a listed page is refused for rights or flags, or not at all."""
    for la, _ in scene.attempts:
        if not scene.state.canonical(la):
            continue
        mem = memory(scene)
        listed = list(ref.mappings(mem, scene.state, ept=scene.ept, start=la, stop=la + 1))
        outcome = ref.walk(mem, scene.state, la, "r", ept=scene.ept, write=False)
        if isinstance(outcome, ref.Mapped):
            (page,) = listed
            assert page.va <= la < page.va + page.size
            assert page.pa + la - page.va == outcome.pa
            assert (page.us, page.rw, page.xd) == (outcome.us, outcome.rw, outcome.xd)
            assert page.guest_size == outcome.guest_size
            assert page.ept_rights == outcome.ept_rights
        elif listed:
            assert outcome.fault in (Fault.PAGE_FAULT, Fault.EPT_VIOLATION, Fault.PML_FULL)
            assert not isinstance(outcome, ref.PageFault) or outcome.error_code & 9 == 1


# ---- enumeration ---------------------------------------------------------------------------------------------


def test_mappings_in_address_order_with_sizes_unmerged() -> None:
    mem = ref.SparseMemory({0x1000: 0x2067, 0x1FF8: 0x1067, 0x2000: 0x3067, 0x2008: 0xC000_00E7,
                            0x3000: 0x4067, 0x3008: 0x80_00E5, 0x4008: 0x9067, 0x4010: 0xA067,
                            0x4018: 0xB066}, nbytes=0x5000)  # fmt: skip
    state = ref.State(cr3=0x1000)
    first = list(ref.mappings(mem, state, stop=1 << 40))
    assert [(page.va, page.pa, page.size, page.rw) for page in first] == [
        (0x1000, 0x9000, 0x1000, 1),
        (0x2000, 0xA000, 0x1000, 1),
        (0x20_0000, 0x80_0000, 0x20_0000, 0),
        (0x4000_0000, 0xC000_0000, 0x4000_0000, 1),
    ]
    # The last PML4E maps the tables themselves: a table seen as a page is what its parent points at.
    seen = list(ref.mappings(mem, state, start=0xFFFF_FF80_0000_0000))
    assert [page.va for page in seen] == sorted(page.va for page in seen)
    assert (0xFFFF_FFFF_FFFF_F000, 0x1000) in [(page.va, page.pa) for page in seen]


def test_mappings_of_every_table_pointing_at_itself_come_one_at_a_time() -> None:
    mem = ref.SparseMemory({0x1000 + 8 * i: 0x1007 for i in range(512)}, nbytes=0x2000)
    pages = ref.mappings(mem, ref.State(cr3=0x1000))
    assert [next(pages).va for _ in range(3)] == [0, 0x1000, 0x2000]


def test_mappings_cut_a_guest_page_where_ept_does() -> None:
    """A 2 MiB guest page over two 4 KiB EPT pages, the second execute-only; the rest of it is not mapped."""
    base = 0x8_0000_0000
    mem = ref.SparseMemory({base: base + 0x1007, base + 0x1000: base + 0x2007, base + 0x2000: base + 0x3007,
                            base + 0x2008: base + 0x4007, **{base + 0x3000 + 8 * i: i << 12 | 0x37 for i in range(8)},
                            base + 0x4000 + 8 * 5: 0x7_0000_0037, base + 0x4000 + 8 * 9: 0x7_1000_0034,
                            0x1000: 0x2067, 0x2000: 0x3067, 0x3000: 0x20_00E7})  # fmt: skip
    ept = ref.Ept(eptp=base | 0x1E)
    pages = list(ref.mappings(mem, ref.State(cr3=0x1000), ept=ept))
    assert [(page.va, page.pa, page.size, page.guest_size, page.ept_rights) for page in pages] == [
        (0x5000, 0x7_0000_0000, 0x1000, 0x20_0000, 7),
        (0x9000, 0x7_1000_0000, 0x1000, 0x20_0000, 4),
    ]


# ---- memory, bus ---------------------------------------------------------------------------------------------


def test_array_memory_is_the_array() -> None:
    array = np.zeros(0x5000 // 8, dtype=np.uint64)
    array[[0x1000 // 8, 0x2000 // 8, 0x3000 // 8, 0x4000 // 8]] = [0x2007, 0x3007, 0x4007, 0x7_0000_0007]
    mem = ref.ArrayMemory(array)
    outcome = ref.walk(mem, ref.State(cr3=0x1000, ac=1), 0x123, "w")
    assert isinstance(outcome, ref.Mapped)
    assert outcome.pa == 0x7_0000_0123, "the result may lie outside memory"
    assert array[0x4000 // 8] == 0x7_0000_0067
    assert [step.kind for step in outcome.steps] == [StepKind.GUEST, StepKind.GUEST_AD] * 4 + [StepKind.DATA]
    with pytest.raises(BusError, match="0x5000 lies outside memory"):
        mem.read64(0x5000)
    with pytest.raises(BusError, match="1-D uint64"):
        ref.ArrayMemory(array.view(np.uint32))


@pytest.mark.parametrize(("entry", "hpa"), [(0x5007, 0x5000), (0xF_FFFF_F000_0007, 0xF_FFFF_F000_0000)])
def test_a_table_outside_memory_is_an_outcome(entry: int, hpa: int) -> None:
    mem = ref.SparseMemory({0x1000: 0x2027, 0x2000: entry | 0x20}, nbytes=0x5000)
    outcome = ref.walk(mem, ref.State(cr3=0x1000), 0, "r")
    assert isinstance(outcome, ref.Bus)
    assert (outcome.hpa, outcome.fault, len(outcome.steps)) == (hpa, Fault.BUS, 2)


def test_a_log_outside_memory_is_an_outcome_and_sets_no_flag() -> None:
    mem = ref.SparseMemory({0x1000: 0x2007, 0x2000: 0x3007, 0x3000: 0x4007, 0x4000: 0x37}, nbytes=0x5000)
    ept = ref.Ept(eptp=0x105E, pml=(0x5000, 4))
    outcome = ref.translate_gpa(mem, ept, 0, ref.GpaReference(wr=True))
    assert outcome == ref.Bus(hpa=0x5020, steps=outcome.steps, pml_index=4)


# ---- states --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registers", "message"),
    [
        ({"cr0": 0x8000_0000}, "PG=1 needs PE=1"),
        ({"cr4": 0}, "LMA=1 needs"),
        ({"maxphyaddr": 53}, "MAXPHYADDR 53"),
        ({"cpl": 4}, "CPL 4"),
        ({"upper_a": "never"}, "'eager' or 'lazy'"),
        ({"pat": 2}, "IA32_PAT"),
        ({"efer": 0x800, "pdpte": (0, 0x2021, 0, 0)}, "0x2021 has a reserved bit"),
    ],
)
def test_impossible_registers_are_named(registers: dict[str, Any], message: str) -> None:
    with pytest.raises(StateError, match=message):
        ref.State(**registers)


def test_impossible_eptp_and_access_are_named() -> None:
    with pytest.raises(StateError, match="0x1019"):
        ref.Ept(eptp=0x1019)
    with pytest.raises(StateError, match="'r', 'w', 'rw' or 'x'"):
        ref.walk(ref.SparseMemory(), ref.State(), 0, "rx")


# ---- memory types --------------------------------------------------------------------------------------------

UC, WC, WT, WP, WB = ref.MemType.UC, ref.MemType.WC, ref.MemType.WT, ref.MemType.WP, ref.MemType.WB


def test_fixed_ranges() -> None:
    registers = [0x0606_0606_0606_0606] * 11
    registers[0] = 0x04 << 56 | 0x06_0606_0606_0606  # 70000..7FFFF write-through
    registers[1] = 0x06_0606_0606_0506 | 0x01 << 56  # 84000 write-protected, 9C000 write-combining
    registers[10] = 0x0006_0606_0606_0606  # FF000 uncacheable
    mtrrs = ref.Mtrrs(def_type=0xC00, fixed=tuple(registers))
    assert [mtrrs.type_at(pa) for pa in (0x6_FFFF, 0x7_0000, 0x8_4000, 0x9_C000, 0xF_EFFF, 0xF_F000)] == [
        WB,
        WT,
        WP,
        WC,
        WB,
        UC,
    ]
    assert mtrrs.type_at(0x10_0000) is UC
    assert ref.Mtrrs(def_type=0x806, fixed=tuple(registers)).type_at(0x7_0000) is WB, "FE off"
    assert ref.Mtrrs(def_type=0x406, fixed=tuple(registers)).type_at(0x7_0000) is UC, "E off"


@pytest.mark.parametrize(
    ("types", "effective"),
    [((6,), WB), ((6, 0), UC), ((6, 4), WT), ((4, 6, 0), UC), ((5, 5), WP), ((6, 1), UC), ((), WC)],
)
def test_overlapping_variable_ranges(types: tuple[int, ...], effective: ref.MemType) -> None:
    pairs = tuple((0x4000_0000 | kind, 0xF_C000_0800) for kind in types)
    mtrrs = ref.Mtrrs(def_type=0x801, variable=pairs)
    assert mtrrs.type_at(0x7FFF_FFFF) is effective
    assert mtrrs.type_at(0x8000_0000) is WC
    switched_off = tuple((base, mask & ~0x800) for base, mask in pairs)
    assert ref.Mtrrs(def_type=0x801, variable=switched_off).type_at(0x7FFF_FFFF) is WC


# ---- VMFUNC --------------------------------------------------------------------------------------------------


def test_vmfunc_switches_the_eptp() -> None:
    mem = ref.SparseMemory({0x7000: 0x5_001E, 0x7008: 0x6_005E, 0x7010: 0x6_0026, 0x7018: 0x6_0019}, nbytes=0x8000)
    ept = ref.Ept(eptp=0x1_001E)
    switched = ref.vmfunc(mem, ept, eax=0, ecx=1, eptp_list=0x7000)
    assert isinstance(switched, ref.EptpSwitched)
    assert (switched.ept.eptp, switched.eptp_index) == (0x6_005E, 1)
    for ecx in (2, 3, 4, 512, 1 << 31):  # another walk length, a bad type, zero, past the list
        assert ref.vmfunc(mem, ept, eax=0, ecx=ecx, eptp_list=0x7000) == ref.VmfuncExit()
    assert ref.vmfunc(mem, ept, eax=1, ecx=0, eptp_list=0x7000) == ref.VmfuncExit()
    assert ref.vmfunc(mem, ept, eax=64, ecx=0, eptp_list=0x7000) == ref.InvalidOpcode()
    assert ref.vmfunc(mem, ept, eax=0, ecx=0, eptp_list=0x7000, enabled=False) == ref.InvalidOpcode()
    assert ref.vmfunc(mem, ept, eax=0, ecx=0, eptp_list=0x7000, functions=0) == ref.VmfuncExit()
    assert ref.vmfunc(mem, ept, eax=0, ecx=511, eptp_list=0x7008) == ref.Bus(hpa=0x8000)


@pytest.mark.parametrize(
    ("changes", "delivered"),
    [({}, True), ({"pe": False}, False), ({"delivering_event": True}, False)],
)
def test_virtualization_exception_needs_all_its_conditions(changes: dict[str, bool], delivered: bool) -> None:
    exit48 = ref.EptViolation(qualification=0x181, gpa=0x1000, gla=0x2000, entry=0)
    seen = ref.deliver_ve(ref.SparseMemory(), exit48, area=0x3000, **changes)
    assert isinstance(seen, ref.VirtualizationException) is delivered
    nowhere = dataclasses.replace(exit48, entry=None)
    assert ref.deliver_ve(ref.SparseMemory(), nowhere, area=0x3000) is nowhere
    assert ref.deliver_ve(ref.SparseMemory(nbytes=0x3000), exit48, area=0x3000) == ref.Bus(hpa=0x3000)


def test_the_deciding_entry_of_a_violation_is_reported() -> None:
    """Bit 63 of the not-present entry, else of the leaf, governs #VE (ept.md §9)."""
    sve = 1 << 63
    tables = {0x1000: 0x2007, 0x2000: 0x3007, 0x3000: 0x4007, 0x4000: sve | 0x35, 0x3008: sve}
    ept = ref.Ept(eptp=0x101E)
    for gpa, entry in ((0, sve | 0x35), (0x20_0000, sve), (0x4000_0000, 0)):
        seen = ref.translate_gpa(ref.SparseMemory(tables), ept, gpa, ref.GpaReference(wr=True))
        assert isinstance(seen, ref.EptViolation)
        assert seen.entry == entry
        assert ref.convertible(seen) is (entry == 0)
    beyond = ref.translate_gpa(ref.SparseMemory(tables), ept, 1 << 48, ref.GpaReference(wr=True))
    assert beyond == ref.EptViolation(qualification=2, gpa=1 << 48, gla=None, entry=None)
