"""Paging structures of the guest on the APIC-access page: exit 44 of kind 15 in place of the reference (apic.md §4)."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu import TLB, Eptp, Fault, GuestState, PhysicalMemory, StateError, load_pdpte_registers, walk
from fastmmu import reference as ref
from fastmmu.dtypes import StepKind
from tests.conformance.cases import WalkCase
from tests.support.random_scenes import Scene, random_scene
from tests.support.walk_comparison import KERNEL, SPEC, disagreements

PHYSICAL = 15 << 12
Steps = list[tuple[int, ...]]  # (kind, level, guest level, hpa, gpa, entry)


def on_pages(case: WalkCase, steps: Steps) -> Iterator[tuple[int, WalkCase]]:
    """The case with the APIC-access page at each page that it referred to."""
    assert case.ept is not None
    for page in {step[3] & ~0xFFF for step in steps} - {case.nbytes}:
        yield page, dataclasses.replace(case, ept=dataclasses.replace(case.ept, apic_access=page))


def expected(steps: Steps, page: int) -> tuple[int, int, Steps] | None:
    """Qualification, gpa and the references made: those until the first to a guest entry on the page."""
    for n, (kind, _, _, hpa, gpa, _) in enumerate(steps):
        if kind == StepKind.GUEST and hpa & ~0xFFF == page:
            return PHYSICAL | hpa & 0xFFF, gpa, steps[:n]
    return None


def compare(scene: Scene, write: bool, seen: Counter[str]) -> None:
    """Both implementations: the walk without the page, cut where it reads a guest entry there."""
    for case in scene.cases(write=write):
        for implementation in (SPEC, KERNEL):
            plain = implementation.run(case)
            if isinstance(plain, str):
                continue
            for page, moved in on_pages(case, plain["steps"]):
                cut, got = expected(plain["steps"], page), implementation.run(moved)
                assert isinstance(got, dict)
                if cut is None:
                    assert got == plain, "other references, of the EPT and to data, are not looked at"
                    seen["elsewhere"] += 1
                else:
                    assert (got["k"], got["q"], got["gpa"], got["steps"]) == ("apic", *cut)
                    seen["exit of " + plain["k"]] += 1
                if implementation is KERNEL:
                    assert not disagreements(moved)


@pytest.mark.parametrize("write", [False, True], ids=["query", "access"])
def test_a_walk_ends_where_it_would_read_a_guest_entry_there(write: bool) -> None:
    rng, seen = random.Random(11 + write), Counter[str]()
    for _ in range(80):
        compare(random_scene(rng, with_ept=(True,)), write, seen)
    for plain in ("ok", "pf", "ev", "em"):
        assert seen["exit of " + plain] > 5, seen
    assert seen["elsewhere"] > 100, seen


# ---- one space, by hand --------------------------------------------------------------------------------------

HPA = 0x4_0000  # of gpa 0; guest PML4 at gpa 1000H, PDPT 2000H, PD 3000H, PT 4000H, data 5000H
EPT_ROOT, EPT_PT = 0x10_0000, 0x10_3000
GUEST = {5: None, 4: 0x1000, 3: 0x2000, 2: 0x3000, 1: 0x4000}  # level -> table
STATE = GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46)


def space(ad: bool = True) -> PhysicalMemory:
    """LA 0 -> gpa 5000H, A set in the guest's entries, no flag in the EPT's."""
    memory = PhysicalMemory(2 << 20)
    for table in (0x1000, 0x2000, 0x3000, 0x4000):
        memory.write64(HPA + table, table + 0x1000 | 0x27)
    for at in (EPT_ROOT, EPT_ROOT + 0x1000, EPT_ROOT + 0x2000):
        memory.write64(at, at + 0x1000 | 7)
    for page in range(8):
        memory.write64(EPT_PT + 8 * page, HPA + 0x1000 * page | 0x37)
    return memory


def attempt(memory: PhysicalMemory, page: int, access: str = "r", eptp: int = 0x5E, **options: Any) -> tuple[int, ...]:
    got = walk(memory, STATE, 0x88, access=access, eptp=Eptp(EPT_ROOT | eptp, apic_access=page, **options), set_ad=True)
    return got.fault, got.exit_qualification or 0, got.gpa


@pytest.mark.parametrize("access", ["r", "w", "rw", "x"])
@pytest.mark.parametrize("level", [4, 3, 2, 1])
def test_every_level_and_kind_of_access(level: int, access: str) -> None:
    table = GUEST[level]
    assert table is not None
    assert attempt(space(), HPA + table, access) == (Fault.APIC_ACCESS, PHYSICAL, table)
    memory = space()
    memory.write64(HPA + table, 0)  # not present: nobody looks
    assert attempt(memory, HPA + table, access) == (Fault.APIC_ACCESS, PHYSICAL, table)
    assert attempt(memory, 0x1F_0000, access)[0] == Fault.PAGE_FAULT


def test_flags_of_the_ept_are_set_before_and_those_of_the_guest_are_not() -> None:
    """With EPT A/D flags on a reference to a table is a write: D in the leaf that maps the page, and the log."""
    memory, log = space(), fastmmu.Pml(0x1E_0000)
    for table in (0x1000, 0x2000):  # the guest's A flags, which an access would set
        memory.write64(HPA + table, memory.read64(HPA + table) & ~0x20)
    assert attempt(memory, HPA + 0x2000, pml=log) == (Fault.APIC_ACCESS, PHYSICAL, 0x2000)
    flags = [memory.read64(EPT_PT + 8 * page) & 0x300 for page in range(8)]
    assert flags == [0, 0x300, 0x300, 0, 0, 0, 0, 0]
    assert (log.index, memory.read64(0x1E_0000 + 8 * 511), memory.read64(0x1E_0000 + 8 * 510)) == (509, 0x1000, 0x2000)
    assert [memory.read64(HPA + table) & 0x20 for table in (0x1000, 0x2000)] == [0x20, 0]


@pytest.mark.parametrize(
    ("entry", "first"),
    [
        (HPA + 0x2000 | 0x36, Fault.EPT_MISCONFIG),
        (HPA + 0x2000 | 0x34, Fault.EPT_VIOLATION),
        (HPA + 0x2000 | 0x35, Fault.EPT_VIOLATION),  # the reference counts as a write
        (0, Fault.EPT_VIOLATION),
        (HPA + 0x2000 | 0x37, Fault.PML_FULL),
        (HPA + 0x2000 | 0x337, Fault.APIC_ACCESS),
    ],
)
def test_exits_of_the_ept_come_first(entry: int, first: Fault) -> None:
    memory = space()
    for at in (EPT_ROOT, EPT_ROOT + 0x1000, EPT_ROOT + 0x2000, EPT_PT + 8):
        memory.write64(at, memory.read64(at) | 0x300)
    memory.write64(EPT_PT + 16, entry)
    assert attempt(memory, HPA + 0x2000, pml=fastmmu.Pml(0x1E_0000, 0xFFFF))[0] == first


def test_it_is_never_a_virtualization_exception() -> None:
    memory = space()
    got = walk(memory, STATE, 0, eptp=Eptp(EPT_ROOT | 0x5E, apic_access=HPA + 0x3000))
    assert got.fault is Fault.APIC_ACCESS
    assert not fastmmu.deliver_ve(memory, got, 0x1F_0000)
    assert not memory.u64[0x1F_0000 >> 3 : 0x1F_0028 >> 3].any()


def test_structures_of_the_ept_and_data_there_are_not_looked_at() -> None:
    for page in (EPT_ROOT, EPT_ROOT + 0x1000, EPT_PT, HPA + 0x5000):
        assert attempt(space(), page) == (Fault.NONE, 0, 0x5088)


def test_a_table_that_is_cached_is_recognised_too() -> None:
    """Its host-physical address comes out of the paging-structure cache then."""
    memory, tlb = space(), TLB("skylake")
    tlb.switch(vpid=1, eptrta=EPT_ROOT)
    eptp = EPT_ROOT | 0x5E
    for page in (0x1000, 0x2000):
        assert walk(memory, STATE, page, eptp=eptp, set_ad=True, tlb=tlb).fault is Fault.PAGE_FAULT
    assert walk(memory, STATE, 0, eptp=eptp, set_ad=True, tlb=tlb).fault is Fault.NONE
    assert walk(memory, STATE, 0, eptp=eptp, set_ad=True, tlb=tlb).guest_refs == 1
    on = Eptp(eptp, apic_access=HPA + 0x4000)
    got = walk(memory, STATE, 0, eptp=on, set_ad=True, tlb=tlb)
    assert (got.fault, got.exit_qualification, got.gpa) == (Fault.APIC_ACCESS, PHYSICAL, 0x4000)
    assert walk(memory, STATE, 0, eptp=on, set_ad=True, tlb=tlb).fault is Fault.APIC_ACCESS


def test_queries_of_many_addresses_say_where_tables_lead() -> None:
    """`translate` and `mappings` know no VMCS; they are equal with and without the page."""
    memory = space()
    for page in (0x1000, 0x4000, 0x5000):
        on, off = Eptp(EPT_ROOT | 0x5E, apic_access=HPA + page), Eptp(EPT_ROOT | 0x5E)
        found = [fastmmu.translate(memory, STATE, np.array([0, 0x1000], "<u8"), eptp=each).pa for each in (on, off)]
        assert found[0].tolist() == found[1].tolist() == [HPA + 0x5000, 2**64 - 1]
        assert len(fastmmu.mappings(memory, STATE, eptp=on)) == len(fastmmu.mappings(memory, STATE, eptp=off)) == 1


def test_addresses_are_checked() -> None:
    with pytest.raises(StateError, match="apic_access=0x1234 is not aligned"):
        Eptp(0x1E, apic_access=0x1234)
    with pytest.raises(StateError, match="apic_access"):
        Eptp(0x1E, maxphyaddr=36, apic_access=1 << 36)
    assert Eptp(0x1E, apic_access=0x1000) != Eptp(0x1E)


def test_pdptes_are_not_loaded_from_there() -> None:
    """One guest-physical access: of the four together."""
    memory = space()
    state = GuestState(cr0=0x8001_0033, cr4=0x20, efer=0, cr3=0x5F20, maxphyaddr=46)
    for eptp in (0x1E, 0x5E):
        assert isinstance(
            load_pdpte_registers(memory, state, eptp=Eptp(EPT_ROOT | eptp, apic_access=HPA + 0x4000)), GuestState
        )
        failed = load_pdpte_registers(memory, state, eptp=Eptp(EPT_ROOT | eptp, apic_access=HPA + 0x5000))
        assert isinstance(failed, fastmmu.WalkResult)
        assert (failed.fault, failed.exit_qualification, failed.gpa) == (Fault.APIC_ACCESS, PHYSICAL | 0xF20, 0x5F20)
        ept = ref.Ept(eptp=EPT_ROOT | eptp, apic_access=HPA + 0x5000)
        spec = ref.load_pdptes(ref.ArrayMemory(memory.u64), 0x5F20, maxphyaddr=46, ept=ept, write=False)
        assert isinstance(spec, ref.ApicAccess)
        assert (spec.qualification, spec.gpa) == (PHYSICAL | 0xF20, 0x5F20)
        assert failed.steps["kind"].tolist() == [step.kind for step in spec.steps[:4]] == [StepKind.EPT] * 4
