"""#VE and VMFUNC against the executable specification, and the conditions of ept.md §9 one by one."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmmu
from fastmmu import reference as ref
from tests.conformance.cases import WalkCase
from tests.conformance.kernel import kernel_eptp, kernel_state
from tests.support.random_scenes import FRAMES, Scene, random_scene, scenes

AREA = (FRAMES - 1) << 12
NBYTES = FRAMES << 12


def memories(mem: dict[int, int], nbytes: int = NBYTES) -> tuple[fastmmu.PhysicalMemory, ref.ArrayMemory]:
    """The same content twice."""
    array = np.zeros(nbytes // 8, "<u8")
    for hpa, value in mem.items():
        array[hpa >> 3] = value
    return fastmmu.PhysicalMemory.from_array(array.copy()), ref.ArrayMemory(array)


# ---- #VE -----------------------------------------------------------------------------------------------------------


def outcomes(
    case: WalkCase, area: dict[int, int]
) -> tuple[ref.Outcome, fastmmu.WalkResult, ref.ArrayMemory, fastmmu.PhysicalMemory]:
    mine, theirs = memories({**case.mem, **{AREA + 8 * i: value for i, value in area.items()}})
    assert case.ept is not None
    result = fastmmu.walk(mine, kernel_state(case.state), case.la, access=case.access, eptp=kernel_eptp(case.ept))
    return ref.walk(theirs, case.state, case.la, case.access, ept=case.ept, write=False), result, theirs, mine


def compare(scene: Scene, area: dict[int, int], index: int, pe: bool, delivering: bool) -> list[bool]:
    """Whether #VE was delivered, for each EPT violation of the scene; both leave the same memory behind."""
    delivered = []
    for case in scene.cases(write=False):
        want, got, theirs, mine = outcomes(case, area)
        if not isinstance(want, ref.EptViolation) or got.fault is not fastmmu.Fault.EPT_VIOLATION:
            continue
        assert got.suppress_ve is not ref.convertible(want)
        end = ref.deliver_ve(theirs, want, area=AREA, eptp_index=index, pe=pe, delivering_event=delivering)
        raised = fastmmu.deliver_ve(mine, got, AREA, eptp_index=index, pe=pe, delivering_event=delivering)
        assert raised is isinstance(end, ref.VirtualizationException)
        assert np.array_equal(mine.u64, theirs.u64)
        delivered.append(raised)
    return delivered


@given(
    scene=scenes(with_ept=(True,)),
    area=st.dictionaries(st.integers(0, 4), st.integers(0, 2**64 - 1)),
    busy=st.booleans(),
    index=st.integers(0, 0xFFFF),
    pe=st.sampled_from([True, True, False]),
    delivering=st.sampled_from([False, False, True]),
)
@settings(max_examples=60)
def test_ve_is_the_specified_ve(
    scene: Scene, area: dict[int, int], busy: bool, index: int, pe: bool, delivering: bool
) -> None:
    area[0] = area.get(0, 0) if busy else area.get(0, 0) & 0xFFFF_FFFF
    compare(scene, area, index, pe, delivering)


def test_violations_of_every_kind_become_ve_or_stay() -> None:
    """The same from a plain generator; it reaches both ends often enough."""
    rng = random.Random(5)
    delivered = [end for _ in range(500) for end in compare(random_scene(rng, with_ept=(True,)), {}, 7, True, False)]
    assert 30 < sum(delivered) < len(delivered) - 30


def simple() -> tuple[fastmmu.PhysicalMemory, fastmmu.WalkResult]:
    """EPT with one page, at 0; a write of gpa 0x3000, which is not mapped, for linear address FFFF800012345678H."""
    mem, _ = memories({0x1000: 0x2007, 0x2000: 0x3007, 0x3000: 0x4007, 0x4000: 0x37})
    return mem, fastmmu.walk_ept(mem, 0x101E, 0x3000, access="w", gla=0xFFFF_8000_1234_5678)


def test_b16_virtualization_exception_area() -> None:
    """Worked example B16: the 34 bytes."""
    leaf = 0x1234_5035  # readable and executable
    mem, _ = memories({0x1000: 0x2007, 0x2000: 0x3007, 0x3000 + 8 * 0x91: 0x4007, 0x4000 + 8 * 0x145: leaf})
    violation = fastmmu.walk_ept(mem, 0x101E, 0x1234_5678, access="w", gla=0xFFFF_8000_1234_5678)
    assert violation.qualification == 0x7AA
    assert fastmmu.deliver_ve(mem, violation, AREA, eptp_index=3)
    assert mem.u8[AREA : AREA + 36].tobytes().hex() == (
        "30000000ffffffffaa07000000000000785634120080ffff785634120000000003000000"
    )
    assert not fastmmu.deliver_ve(mem, violation, AREA), "the area is busy until software clears bytes 7:4"
    mem.u64[AREA // 8] = 0x30
    assert fastmmu.deliver_ve(mem, violation, AREA)


@pytest.mark.parametrize("without", [{"pe": False}, {"delivering_event": True}], ids=str)
def test_ve_needs_protected_mode_and_no_delivery(without: dict[str, bool]) -> None:
    mem, violation = simple()
    assert not fastmmu.deliver_ve(mem, violation, AREA, **without)
    assert not mem.u8[AREA : AREA + 64].any()
    assert fastmmu.deliver_ve(mem, violation, AREA)


def test_only_violations_become_ve() -> None:
    mem, _ = simple()
    mem.u64[0x4008 // 8] = 0x2  # writable, not readable: a misconfiguration
    misconfigured = fastmmu.walk_ept(mem, 0x101E, 0x1000)
    assert misconfigured.fault is fastmmu.Fault.EPT_MISCONFIG
    assert not fastmmu.deliver_ve(mem, misconfigured, AREA)
    with pytest.raises(fastmmu.StateError, match="translated"):
        fastmmu.deliver_ve(mem, fastmmu.walk_ept(mem, 0x101E, 0), AREA)


def test_the_entry_that_decides_an_update_is_that_of_the_table() -> None:
    """The A flag of a PML4E cannot be set: bit 63 counts in the EPT entry of its page, not in the last one read."""
    sve = 1 << 63
    mem = {0x1000: 0x2007, 0x2000: 0x3007, 0x3000: 0x4007, 0x4028: 0x5035, 0x4030: 0x6037, 0x4038: 0x7037,
           0x4040: 0x8037, 0x4048: 0x9037, 0x5000: 0x6007, 0x6000: 0x7027, 0x7000: 0x8027, 0x8000: 0x9027}  # fmt: skip
    for bit63 in ({0x4028: 0x5035 | sve}, {0x4040: 0x8037 | sve}):
        state = fastmmu.GuestState(cr3=0x5000, upper_a="lazy")
        seen = fastmmu.walk(memories({**mem, **bit63})[0], state, 0, eptp=0x101E)
        assert (seen.fault, seen.gpa) == (fastmmu.Fault.EPT_VIOLATION, 0x5000)
        assert seen.suppress_ve is (0x4028 in bit63)


def test_what_deliver_ve_refuses() -> None:
    mem, violation = simple()
    with pytest.raises(fastmmu.BusError, match="information area"):
        fastmmu.deliver_ve(mem, violation, NBYTES)
    for area in (0x3008, -4096, 1 << 52, True):
        with pytest.raises(fastmmu.StateError, match="4 KB"):
            fastmmu.deliver_ve(mem, violation, area)
    with pytest.raises(fastmmu.StateError, match="eptp_index"):
        fastmmu.deliver_ve(mem, violation, AREA, eptp_index=1 << 16)
    mem.u8.flags.writeable = False
    frozen = fastmmu.PhysicalMemory.from_array(mem.u8)
    with pytest.raises(fastmmu.StateError, match="read-only"):
        fastmmu.deliver_ve(frozen, violation, AREA)


# ---- VMFUNC --------------------------------------------------------------------------------------------------------

EPTPS = st.one_of(
    st.builds(lambda frame, low: frame << 12 | low, st.integers(0, 1 << 41), st.sampled_from([0x1E, 0x5E, 0x26, 0x18])),
    st.builds(lambda frame, low: frame << 12 | low, st.integers(0, 1 << 10), st.integers(0, 0xFFF)),
)


@given(
    listed=st.dictionaries(st.integers(0, 7), EPTPS, min_size=1),
    now=st.sampled_from([0x101E, 0x105E, 0x1026, 0x1018]),
    eax=st.sampled_from([0, 0, 0, 0, 1 << 32, 1, 63, 64, 1 << 31]),
    ecx=st.one_of(st.integers(0, 7), st.sampled_from([511, 512, 1 << 31, 1 << 32 | 1])),
    functions=st.sampled_from([1, 1, 1, 0, 2, 3]),
    enabled=st.sampled_from([True, True, True, False]),
    ad=st.booleans(),
    mbec=st.integers(0, 1),
)
@settings(max_examples=300)
def test_vmfunc_is_the_specified_vmfunc(
    listed: dict[int, int], now: int, eax: int, ecx: int, functions: int, enabled: bool, ad: bool, mbec: int
) -> None:
    mine, theirs = memories({0x7000 + 8 * i: eptp for i, eptp in listed.items()}, 0x8000)
    caps = ref.EptCap.ALL if ad or now & 0x40 else ref.EptCap.ALL & ~ref.EptCap.AD
    ept = ref.Ept(eptp=now, caps=caps, mbec=mbec, maxphyaddr=52)
    want = ref.vmfunc(theirs, ept, eax=eax, ecx=ecx, enabled=enabled, functions=functions, eptp_list=0x7000)
    log = fastmmu.Pml(0x3000)
    before = fastmmu.Eptp(now, mbec=bool(mbec), pml=log)
    got = fastmmu.vmfunc(mine, before, eax=eax, ecx=ecx, enabled=enabled, functions=functions, eptp_list=0x7000,
                         ad_supported=bool(caps & ref.EptCap.AD))  # fmt: skip
    if isinstance(want, ref.EptpSwitched):
        assert (got.eptp.value, got.eptp_index) == (want.ept.eptp, want.eptp_index)
        assert got.eptp.options == before.options
        assert got.eptp.pml is log
        assert (got.exit, got.exception) == (None, None)
    else:
        assert (got.eptp, got.eptp_index) == (before, None)
        undefined = isinstance(want, ref.InvalidOpcode)
        assert (got.exit, got.exception) == ((None, 6) if undefined else (fastmmu.ExitReason.VMFUNC, None))


def test_an_address_means_what_the_new_tables_say() -> None:
    mem, _ = memories({0x1000: 0x2007, 0x2000: 0x3007, 0x3000: 0x4007, 0x4000: 0x9037,
                       0x5000: 0x6007, 0x6000: 0x7007, 0x7000: 0x8007, 0x8000: 0xA037, 0xB008: 0x501E})  # fmt: skip
    assert fastmmu.walk_ept(mem, 0x101E, 0x10).pa == 0x9010
    switched = fastmmu.vmfunc(mem, 0x101E, eax=0, ecx=1, eptp_list=0xB000)
    assert (switched.eptp_index, switched.exit, switched.exception) == (1, None, None)
    assert fastmmu.walk_ept(mem, switched.eptp, 0x10).pa == 0xA010


def test_what_vmfunc_refuses() -> None:
    mem = fastmmu.PhysicalMemory(0x8008)
    with pytest.raises(fastmmu.BusError, match="entry 1 of the EPTP list"):
        fastmmu.vmfunc(mem, 0x101E, eax=0, ecx=1, eptp_list=0x8000)
    with pytest.raises(fastmmu.StateError, match="4 KB"):
        fastmmu.vmfunc(mem, 0x101E, eax=0, ecx=1, eptp_list=0x7008)
    with pytest.raises(fastmmu.StateError, match="ecx"):
        fastmmu.vmfunc(mem, 0x101E, eax=0, ecx=-1, eptp_list=0x7000)
    with pytest.raises(fastmmu.StateError, match="eptp"):
        fastmmu.vmfunc(mem, 0x1, eax=0, ecx=1, eptp_list=0x7000)
