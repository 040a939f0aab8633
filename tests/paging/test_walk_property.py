"""Kernels against the executable specification on random tables: outcome, addresses, codes, steps, memory."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmmu
from fastmmu import reference as ref
from fastmmu.dtypes import ALL_ONES, Fault, StepKind
from tests.conformance.cases import Case, Observed, PdpteCase, WalkCase
from tests.conformance.kernel import WORDS, kernel_eptp, kernel_state
from tests.support.random_scenes import ACCESSES, MEMORY, Scene, random_scene, scenes
from tests.support.walk_comparison import KERNEL, SPEC, disagreements, tables_overlap


def check(scene: Scene, *, write: bool) -> None:
    for case in scene.cases(write=write):
        assert not (found := disagreements(case)), "\n".join(
            [f"{case.access} of {case.la:#x}", *scene.defects, f"{case.state}", f"{case.ept}", *found]
        )


@pytest.mark.parametrize("ept", [False, True, "npt"], ids=["guest", "nested", "npt"])
@pytest.mark.parametrize("mode", list(ref.Mode), ids=lambda mode: mode.name)
@given(data=st.data(), write=st.booleans())
@settings(max_examples=40, deadline=None)
def test_walk_is_the_specified_walk(mode: ref.Mode, ept: bool | str, data: st.DataObject, write: bool) -> None:
    check(data.draw(scenes(modes=(mode,), with_ept=(ept,))), write=write)


@pytest.mark.parametrize("write", [False, True], ids=["query", "access"])
def test_many_walks_and_every_outcome(write: bool) -> None:
    """The same from a plain generator, which is quicker, and a count that the generator reaches every outcome."""
    rng = random.Random(2 + write)
    seen: Counter[str] = Counter()
    for _ in range(900):
        scene = random_scene(rng)
        check(scene, write=write)
        seen.update(SPEC.run(case)["k"] for case in scene.cases())  # type: ignore[index]
    assert all(seen[k] > 3 for k in ("ok", "pf", "gp", "ev", "em", "bus", "pml", "spp")), seen


@pytest.mark.parametrize("write", [False, True], ids=["query", "access"])
def test_many_walks_over_nested_paging_of_amd(write: bool) -> None:
    """Every kind of its fault as well: of a table or of the data, not present, reserved, denied, of a fetch."""
    rng = random.Random(5 + write)
    seen: Counter[str] = Counter()
    for _ in range(900):
        scene = random_scene(rng, with_ept=("npt",))
        check(scene, write=write)
        for case in scene.cases():
            want = SPEC.run(case)
            assert isinstance(want, dict)
            seen[want["k"]] += 1
            if want["k"] == "npf":
                code = want["q"]
                seen[("table", "data")[code >> 32 & 1] + f" {code & 9}"] += 1
                seen["fetch"] += code >> 4 & 1
    kinds = [f"{place} {code}" for place in ("table", "data") for code in (0, 1, 9)]
    assert all(seen[k] > 3 for k in ("ok", "pf", "gp", "npf", "bus", "fetch", *kinds)), seen


@pytest.mark.parametrize("nested", [False, True, "npt"], ids=["guest", "nested", "npt"])
@given(data=st.data(), access=st.sampled_from(ACCESSES))
@settings(max_examples=40, deadline=None)
def test_a_batch_goes_where_the_specified_walks_go(nested: bool | str, data: st.DataObject, access: str) -> None:
    scene = data.draw(scenes(with_ept=(nested,)))
    near = [la ^ bit for la, _ in scene.attempts for bit in (0, 0x1000, 0x20_0000, 8)]
    # a log that is full stops accesses, not translations
    ept = dataclasses.replace(scene.ept, pml=None) if isinstance(scene.ept, ref.Ept) else scene.ept
    cases = [dataclasses.replace(scene.cases(write=False)[0], la=la, access=access, ept=ept) for la in near]
    array = np.zeros(cases[0].nbytes // 8, dtype="<u8")
    for hpa, value in scene.mem.items():
        array[hpa >> 3] = value
    batch = fastmmu.translate(
        fastmmu.PhysicalMemory.from_array(array),
        kernel_state(scene.state),
        np.array(near, dtype="<u8"),
        access=access,
        eptp=kernel_eptp(scene.ept) if scene.ept else None,
    )
    for case, pa, fault in zip(cases, batch.pa.tolist(), batch.fault.tolist(), strict=True):
        want = SPEC.run(case)
        assert isinstance(want, dict)
        if not tables_overlap(want["steps"]):
            assert (WORDS[Fault(fault)], pa) == (want["k"], want.get("pa", int(ALL_ONES))), (f"{case.la:#x}", scene)


def test_the_load_of_pdptes_is_the_specified_load() -> None:
    """From where tables of PAE guests lie, so that some loads succeed, some are #GP and some EPT exits."""
    rng = random.Random(4)
    seen: Counter[str] = Counter()
    for _ in range(400):
        scene = random_scene(rng, modes=(ref.Mode.PAE,))
        for register in {value for value in scene.state.pdpte if value & 1}:
            cr3 = (register & 0xFFFF_F000) + 32 * rng.choice((0, 0, 127, rng.randrange(128)))
            case = PdpteCase(mem=scene.mem, cr3=cr3, maxphyaddr=scene.state.maxphyaddr, ept=scene.ept, nbytes=MEMORY)
            want = SPEC.run(case)
            assert isinstance(want, dict)
            if want["k"] == "bus" and scene.ept is None:
                with pytest.raises(fastmmu.BusError, match="PDPTEs lie outside"):
                    KERNEL.run(case)
                continue
            got = KERNEL.run(case)
            assert isinstance(got, dict)
            skipped = KERNEL.unreported | got.pop("unreported", set())
            assert got == {name: value for name, value in want.items() if name not in skipped}
            seen[want["k"] + "+ch" * bool(want["ch"])] += 1
    assert all(seen[k] > 2 for k in ("ok", "ok+ch", "gp", "gp+ch", "ev", "em", "pml")), seen


def test_addresses_are_64_bits_signed_or_not() -> None:
    """As `translate` takes them; outside long mode bits 31:0 count (paging.md §5)."""
    mem = fastmmu.PhysicalMemory(0x3000)
    for state, la in ((fastmmu.GuestState(cr3=0x1000), 2**64 - 8), (fastmmu.GuestState(cr4=0, efer=0), 2**32 - 8)):
        signed, unsigned = (fastmmu.walk(mem, state, va) for va in (-8, la))
        assert (signed.la, signed.fault, signed.cr2) == (unsigned.la, unsigned.fault, unsigned.cr2) == (la, 1, la)
        assert signed.steps.tolist() == unsigned.steps.tolist()
    for va in (-(1 << 63) - 1, 1 << 64, 1.0, True):
        with pytest.raises(fastmmu.StateError, match="64 bits"):
            fastmmu.walk(mem, fastmmu.GuestState(), va)
    with pytest.raises(fastmmu.StateError, match="guest-physical"):
        fastmmu.walk_ept(mem, 0x1E, -8)


def test_a_pae_root_outside_memory_is_an_error() -> None:
    state = fastmmu.GuestState(cr3=0x2FF0, cr4=0x20, efer=0)  # bits 31:5 are 2FE0H
    mem = fastmmu.PhysicalMemory(0x3000)
    assert isinstance(fastmmu.load_pdpte_registers(mem, state), fastmmu.GuestState)
    for cr3 in (0x3000, 0xFFFF_FFE0):
        for ask in (fastmmu.walk, fastmmu.translate):
            with pytest.raises(fastmmu.BusError, match="PDPTEs lie outside"):
                ask(mem, state.replace(cr3=cr3), 0)
        with pytest.raises(fastmmu.BusError, match="PDPTEs lie outside"):
            fastmmu.load_pdpte_registers(mem, state.replace(cr3=cr3))


def test_a_wrong_kernel_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each field that the comparison looks at: change it in what the kernel says, and scenes fail."""

    def wrong(seen: Observed, field: str) -> Observed:
        value = seen.get(field)
        if isinstance(value, int):
            seen[field] = value ^ 3
        elif isinstance(value, list) and value:
            seen[field] = value[:-1]
        elif isinstance(value, dict):
            seen[field] = {**value, 8: 1}
        return seen

    right = KERNEL.run

    def spoiled(case: Case) -> Observed | str:
        seen = right(case)
        return seen if isinstance(seen, str) else wrong(dict(seen), field)

    monkeypatch.setattr(KERNEL, "run", spoiled)
    for field in ("pa", "gpa", "gps", "eps", "us", "rw", "xd", "mt", "ec", "q", "sve", "pmli", "ch", "steps"):
        rng = random.Random(3)
        cases = [case for _ in range(60) for case in random_scene(rng).cases()]
        assert any(disagreements(case) for case in cases), field


# ---- found by random scenes -------------------------------------------------------------------------------------


def test_a_flag_that_is_set_is_never_lost() -> None:
    """Qword 3008 is a guest PML4E and an EPT PDE: EPT sets its A flag (bit 8), then the guest's (bit 5) is set.

    An update is a locked read-modify-write (paging.md §6): both flags are there in the end.
    """
    mem = {0x1000: 0x2007, 0x2000: 0x3007, 0x3000: 0x4007, 0x3008: 0x5007, 0x4018: 0x3037, 0x4028: 0x6037,
           0x4040: 0x8037, 0x4048: 0x9037, 0x5000: 0x7037, 0x6000: 0x20_0007, 0x7000: 0x8007,
           0x8000: 0x9067}  # fmt: skip
    state = ref.State(cr3=0x3000, ac=1, upper_a="lazy")
    case = WalkCase(mem=mem, state=state, la=1 << 39, access="r", ept=ref.Ept(eptp=0x105E), nbytes=0x1_0000)
    want, got = SPEC.run(case), KERNEL.run(case)
    assert isinstance(want, dict)
    assert isinstance(got, dict)
    assert want["ch"][0x3008] == 0x5127
    assert got["ch"] == want["ch"]


@pytest.mark.parametrize("access", ["r", "w"])
@pytest.mark.parametrize("nested", [False, True], ids=["guest", "nested"])
def test_an_entry_at_two_levels_gets_a_flag_once(nested: bool, access: str) -> None:
    """The guest's table at 3000 and the EPT's at A000 are their own: levels 3 to 1 are one entry, A is set once in it.

    An update is a locked read-modify-write that writes only where a flag is clear (paging.md §6, ept.md §7).
    """
    guest = {0x2000: 0x3007, 0x3000: 0x3007}
    own = {0x9000: 0xA007, 0xA000: 0xA007, **{0xA000 + 8 * i: i << 12 | 0x37 for i in range(1, 16)}}
    state = ref.State(cr3=0x2000, cr4=0xA0, upper_a="lazy")
    ept = ref.Ept(eptp=0x905E) if nested else None
    case = WalkCase(mem=guest | own, state=state, la=0, access=access, ept=ept, nbytes=0x1_0000)
    want, got = SPEC.run(case), KERNEL.run(case)
    assert isinstance(want, dict)
    assert isinstance(got, dict)
    written = [step for step in got["steps"] if step[0] == StepKind.GUEST_AD]
    assert [step[3] for step in written] == [0x2000, 0x3000] + [0x3000] * (access == "w")
    assert not disagreements(case)


def test_no_data_access_when_guest_flags_cannot_be_set() -> None:
    """guest_ad_before_final_ept off: the violation by the A flag of the leaf comes after the final translation."""
    mem = {0x1000: 0x2007, 0x2000: 0x3007, 0x3000: 0x4007, 0x4028: 0x5037, 0x4030: 0x6037, 0x4038: 0x7037,
           0x4040: 0x8035, 0x4048: 0x9037, 0x5000: 0x6027, 0x6000: 0x7027, 0x7000: 0x8027, 0x8000: 0x9007}  # fmt: skip
    ept = ref.Ept(eptp=0x101E, guest_ad_before_final_ept=False)
    case = WalkCase(mem=mem, state=ref.State(cr3=0x5000, ac=1), la=0, access="r", ept=ept, nbytes=0x1_0000)
    want, got = SPEC.run(case), KERNEL.run(case)
    assert isinstance(want, dict)
    assert isinstance(got, dict)
    assert want["k"] == got["k"] == "ev"
    assert got["steps"] == want["steps"]


def test_a_query_foresees_that_the_log_fills_up() -> None:
    """Four guest tables to be logged and room for one: the access ends in exit 62, and so must the query."""
    mem = {0x1000: 0x2007, 0x2000: 0x3007, 0x3000: 0x4007, 0x4028: 0x5037, 0x4030: 0x6037, 0x4038: 0x7037,
           0x4040: 0x8037, 0x4048: 0x9037, 0x5000: 0x6027, 0x6000: 0x7027, 0x7000: 0x8027, 0x8000: 0x9027}  # fmt: skip
    ept = ref.Ept(eptp=0x105E, pml=(0xA000, 0))
    case = WalkCase(mem=mem, state=ref.State(cr3=0x5000, ac=1), la=0, access="r", ept=ept, nbytes=0x1_0000, write=False)
    want, got = SPEC.run(case), KERNEL.run(case)
    assert isinstance(want, dict)
    assert isinstance(got, dict)
    assert want["k"] == "pml"
    assert got["k"] == "pml"
