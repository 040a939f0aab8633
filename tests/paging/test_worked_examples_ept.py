"""Worked examples A5 and B1-B17: EPT, nested walks and the load of PDPTE registers, by numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fastmmu import reference as ref
from fastmmu.dtypes import StepKind
from tests.conformance.adapters import adapters, ask
from tests.conformance.cases import Adapter, EptpCase, Observed, PdpteCase, WalkCase

ALL, XO, AD = ref.EptCap.ALL, ref.EptCap.EXECUTE_ONLY, ref.EptCap.AD
NO_ADVANCED = ALL & ~ref.EptCap.ADVANCED_INFO
LONG: dict[str, Any] = {"cr0": 0x8001_0031, "cr3": 0x1000, "cr4": 0x20, "efer": 0xD00, "maxphyaddr": 46}
# B11: la 0000_0080_4020_1ABC through guest tables at gpa 1000..4000 and EPT tables at 2_0000_0000 up.
LA = 0x80_4020_1ABC
ROOT, PDPT, PD, PT = 0x2_0000_0000, 0x2_0000_1000, 0x2_0000_2000, 0x2_0000_3000
UPPER = {ROOT: PDPT | 7, PDPT: PD | 7, PD: PT | 7}
LEAVES = {PT + 8 * i: 0x1_0000_0037 | i << 12 for i in (1, 2, 3, 4, 9)}
GUEST = {0x1008: 0x2067, 0x2008: 0x3067, 0x3008: 0x4067, 0x4008: 0x9067}
MEM = {**UPPER, **LEAVES, **{0x1_0000_0000 + gpa: entry for gpa, entry in GUEST.items()}}
EPTP, EPTP_AD = ROOT | 0x1E, ROOT | 0x5E
DATA_LEAF = PT + 8 * 9
PTE_LEAF = PT + 8 * 4  # maps the page of the guest PTE
GUEST_PTE = 0x1_0000_4008


@pytest.fixture(params=adapters(), ids=lambda adapter: adapter.name)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    chosen: Adapter = request.param
    return chosen


def nested(
    adapter: Adapter, mem: dict[int, int], access: str, *fields: str, la: int = LA, eptp: int = EPTP, **options: Any
) -> Observed:
    """One nested walk in the world of B11; options go to Ept or State by name. Default: no advanced information."""
    mine = {key: options.pop(key) for key in ("caps", "mbec", "pml", "spptp", "guest_ad_before_final_ept")
            if key in options}  # fmt: skip
    ept = ref.Ept(eptp=eptp, maxphyaddr=46, **{"caps": NO_ADVANCED, **mine})
    state = ref.State(**{"cpl": 3, **LONG, **options})
    return ask(adapter, WalkCase(mem=mem, state=state, la=la, access=access, ept=ept), *fields)


def violation(seen: Observed) -> int:
    assert seen["k"] == "ev"
    q: int = seen["q"]
    return q


# ---- PDPTE registers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pdpte", "k"),
    [(0x2001, "ok"), (0x2021, "gp"), (0x20, "ok"), (1 << 36 | 0x2001, "gp"), (0x2E19, "ok")],
)
def test_a5_pdpte_load(adapter: Adapter, pdpte: int, k: str) -> None:
    for slot in range(4):
        seen = ask(adapter, PdpteCase(mem={0x1020 + 8 * slot: pdpte}, cr3=0x1020, maxphyaddr=36))
        assert seen["k"] == k
        if k == "ok" and "pdpte" not in adapter.unreported:
            assert seen["pdpte"][slot] == pdpte


def test_b17_pdpte_load_under_ept(adapter: Adapter) -> None:
    ept = ref.Ept(eptp=EPTP_AD, maxphyaddr=46)
    seen = ask(adapter, PdpteCase(mem=dict(UPPER), cr3=0x5000, maxphyaddr=46, ept=ept))
    assert (violation(seen), seen["gpa"], seen.get("gla")) == (0x01, 0x5000, None)
    mapped = {**UPPER, PT + 8 * 5: 0x5031, 0x5000: 0x2001}  # read permission is all that it needs
    loaded = ask(adapter, PdpteCase(mem=mapped, cr3=0x5000, maxphyaddr=46, ept=ept))
    assert loaded["pdpte"] == (0x2001, 0, 0, 0)
    assert loaded["ch"] == {ROOT: PDPT | 0x107, PDPT: PD | 0x107, PD: PT | 0x107, PT + 8 * 5: 0x5131}


# ---- one dimension -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eptp", "caps", "valid"),
    [
        (0x1_2345_601E, ALL, 1),
        (0x1_2345_605E, ALL, 1),
        (0x1_2345_6026, ALL, 1),
        (0x1_2345_6066, ALL, 1),
        (0x1_2345_6019, ALL, 0),
        (0x1_2345_6016, ALL, 0),
        (0x1_2345_611E, ALL, 0),
        (0x1_2345_605E, ALL & ~AD, 0),
        (0x1_2345_6026, ALL & ~ref.EptCap.WALK5, 0),
        (0x1_2345_609E, ALL, 0),
    ],
)
def test_b1_eptp_values(adapter: Adapter, eptp: int, caps: int, valid: int) -> None:
    assert ask(adapter, EptpCase(eptp=eptp, caps=caps, maxphyaddr=46))["valid"] == valid


@pytest.mark.parametrize(("caps", "qualification"), [(NO_ADVANCED, 0x1AA), (ALL, 0x7AA)])
def test_b2_write_to_r_x_leaf(adapter: Adapter, caps: int, qualification: int) -> None:
    seen = nested(adapter, {**MEM, DATA_LEAF: 0x1_0000_9035}, "w", caps=caps)
    assert (violation(seen), seen["gpa"], seen["gla"]) == (qualification, 0x9ABC, LA)


@pytest.mark.parametrize(("caps", "qualification"), [(NO_ADVANCED, 0x181), (ALL, 0xD81)])
def test_b3_not_present_leaf(adapter: Adapter, caps: int, qualification: int) -> None:
    mem = {**MEM, DATA_LEAF: 0, GUEST_PTE: 0x8000_0000_0000_9063}
    assert violation(nested(adapter, mem, "r", caps=caps, cpl=0)) == qualification


@pytest.mark.parametrize(("eptp", "qualification"), [(EPTP, 0x81), (EPTP_AD, 0x83)])
def test_b4_guest_pte_page_unmapped(adapter: Adapter, eptp: int, qualification: int) -> None:
    seen = nested(adapter, {**MEM, PTE_LEAF: 0}, "r", eptp=eptp, caps=ALL)
    assert (violation(seen), seen["gpa"], seen["gla"]) == (qualification, 0x4008, LA)


def test_b5_guest_pte_page_read_only(adapter: Adapter) -> None:
    read_only = {**MEM, PTE_LEAF: 0x1_0000_4031}
    clear = {**read_only, GUEST_PTE: 0x9007}
    seen = nested(adapter, clear, "r")
    assert (violation(seen), seen["gpa"], seen["ch"]) == (0x8B, 0x4008, {})
    assert nested(adapter, read_only, "w")["k"] == "ok"
    assert nested(adapter, {**clear, GUEST_PTE: 0x9027}, "r")["k"] == "ok"
    assert violation(nested(adapter, {**clear, GUEST_PTE: 0x9027}, "w")) == 0x8B
    assert violation(nested(adapter, read_only, "r", eptp=EPTP_AD)) == 0x8B


@pytest.mark.parametrize(("caps", "qualification"), [(NO_ADVANCED, 0x1BC), (ALL, 0x7BC)])
def test_b6_mode_based_execute(adapter: Adapter, caps: int, qualification: int) -> None:
    mem = {**MEM, **{hpa: entry | 0x400 for hpa, entry in {**UPPER, **LEAVES}.items()}, DATA_LEAF: 0x1_0000_9037}
    assert violation(nested(adapter, mem, "x", mbec=1, caps=caps)) == qualification
    assert nested(adapter, {**mem, GUEST_PTE: 0x9063}, "x", mbec=1, cpl=0)["k"] == "ok"


def test_b7_anded_permissions(adapter: Adapter) -> None:
    # Guest tables have a 2 MiB region of their own, so that only the data is reached through RW- and R-X.
    mem = {**MEM, ROOT: PDPT | 7, PDPT + 8: 0x2_0000_4000 | 3, 0x2_0000_4000: 0x2_0000_5000 | 7,
           0x2_0000_5000 + 8 * 9: 0x1_0000_9035, GUEST_PTE: 0x4000_9067}  # fmt: skip
    assert violation(nested(adapter, mem, "x")) == 0x18C


def far_leaf(pdpte_rights: int, leaf: int) -> dict[int, int]:
    """The data page reached through a PDPTE of its own."""
    return {**MEM, PDPT + 8: 0x2_0000_4000 | pdpte_rights, 0x2_0000_4000: 0x2_0000_5000 | 7,
            0x2_0000_5000 + 8 * 9: leaf, GUEST_PTE: 0x4000_9067}  # fmt: skip


def test_b8_misconfiguration_beats_violation(adapter: Adapter) -> None:
    seen = nested(adapter, far_leaf(5, 0x1_0000_9036), "w")
    assert (seen["k"], seen["gpa"]) == ("em", 0x4000_9ABC)
    execute_only = far_leaf(5, 0x1_0000_9034)
    assert nested(adapter, execute_only, "r", caps=NO_ADVANCED & ~XO)["k"] == "em"
    assert violation(nested(adapter, execute_only, "r")) == 0x1A1


@pytest.mark.parametrize(
    ("hpa", "entry", "k"),
    [
        (DATA_LEAF, 0x1_0000_903F, "em"),
        (DATA_LEAF, 0x1_0000_901F, "em"),
        (DATA_LEAF, 0x1_0000_900F, "ok"),
        (PDPT, PD | 0x0F, "em"),
        (ROOT, PDPT | 0x87, "em"),
        (PD, 0x10B7, "em"),
        (PD, 0x00B7, "ok"),
        (DATA_LEAF, 1 << 46 | 0x1_0000_9037, "em"),
        (DATA_LEAF, 0x1_0000_9032, "em"),
    ],
)
def test_b9_misconfigurations(adapter: Adapter, hpa: int, entry: int, k: str) -> None:
    mem = {**MEM, hpa: entry}
    if hpa == PD and k == "ok":  # a 2 MiB page at 0: the guest tables are then there
        mem |= GUEST
    assert nested(adapter, mem, "r")["k"] == k


# ---- two dimensions ------------------------------------------------------------------------------------------


def identity(levels: int, page: int) -> tuple[dict[int, int], int]:
    """EPT tables at 8_0000_0000 up that map 0..2 MiB (page level 1) or more onto itself; the EPTP."""
    base, mem = 0x8_0000_0000, {}
    for depth in range(levels - page):
        mem[base + depth * 0x1000] = base + (depth + 1) * 0x1000 | 7
    last = base + (levels - page) * 0x1000
    if page == 1:
        mem |= {last + 8 * i: i << 12 | 0x37 for i in range(512)}
    else:
        mem[last] = 0xB7
    return mem, base | (levels - 1) << 3 | 6


LA57, PAE_EFER = 0x1020, 0x800


@pytest.mark.parametrize(
    ("guest", "ept_levels", "ept_page", "references"),
    [
        ("4", 4, 1, 24),
        ("5", 5, 1, 35),
        ("4", 5, 1, 29),
        ("5", 4, 1, 29),
        ("pae", 4, 1, 14),
        ("32", 4, 1, 14),
        ("pae", 5, 1, 17),
        ("32", 5, 1, 17),
        ("none", 4, 1, 4),
        ("none", 5, 1, 5),
        ("4 with 2M", 4, 1, 19),
        ("4", 4, 2, 19),
        ("4 with 2M", 4, 2, 15),
        ("4 with 1G", 4, 3, 8),
    ],
)
def test_b10_number_of_references(
    adapter: Adapter, guest: str, ept_levels: int, ept_page: int, references: int
) -> None:
    tables = {0x1000: 0x2067, 0x2000: 0x3067, 0x3000: 0x4067, 0x4000: 0x5067, 0x5000: 0x9067}
    registers: dict[str, dict[str, Any]] = {
        "4": {"cr3": 0x2000},
        "5": {"cr3": 0x1000, "cr4": LA57},
        "pae": {"efer": PAE_EFER, "pdpte": (0x4001, 0, 0, 0)},
        "32": {"efer": 0, "cr4": 0, "cr3": 0x4000},
        "none": {"efer": 0, "cr0": 0x31},
        "4 with 2M": {"cr3": 0x2000},
        "4 with 1G": {"cr3": 0x2000},
    }
    if guest == "4 with 2M":
        tables[0x4000] = 0xE7
    if guest == "4 with 1G":
        tables[0x3000] = 0xE7
    ept, eptp = identity(ept_levels, ept_page)
    seen = nested(adapter, tables | ept, "r", la=0xABC, eptp=eptp, **registers[guest])
    assert seen["k"] == "ok"
    assert sum(step[0] in (StepKind.GUEST, StepKind.EPT) for step in seen["steps"]) == references


def test_b11_full_walk(adapter: Adapter) -> None:
    seen = nested(adapter, MEM, "r")
    order = []
    for slot in (1, 2, 3, 4, 9):
        order += [ROOT, PDPT, PD, PT + 8 * slot]
        order += [0x1_0000_0008 | slot << 12] if slot != 9 else [0x1_0000_9ABC]
    assert [hpa for _, _, _, hpa, _, _ in seen["steps"]] == order
    assert (seen["pa"], seen["ch"]) == (0x1_0000_9ABC, {})
    upper = {hpa: entry | 0x100 for hpa, entry in UPPER.items()}
    tables = {hpa: entry | 0x300 for hpa, entry in LEAVES.items() if hpa != DATA_LEAF}
    for access, leaf in (("r", 0x1_0000_9137), ("w", 0x1_0000_9337)):
        assert nested(adapter, MEM, access, eptp=EPTP_AD)["ch"] == {**upper, **tables, DATA_LEAF: leaf}


def test_b12_priority(adapter: Adapter) -> None:
    refused = nested(adapter, {**MEM, GUEST_PTE: 0x9065, DATA_LEAF: 0}, "w")
    assert (refused["k"], refused["ec"], refused["cr2"]) == ("pf", 0x07, LA)
    both = {**MEM, GUEST_PTE: 0x9027, PTE_LEAF: 0x1_0000_4031, DATA_LEAF: 0}
    seen = nested(adapter, both, "w")
    assert (violation(seen), seen["gpa"]) == (0x8B, 0x4008)
    later = nested(adapter, both, "w", guest_ad_before_final_ept=False)
    assert (violation(later), later["gpa"]) == (0x182, 0x9ABC)


def test_b12_accessed_flag_of_an_upper_entry(adapter: Adapter) -> None:
    """Eagerly its violation precedes what is wrong below; lazily it comes after every guest check."""
    mem = {**MEM, 0x1_0000_3008: 0x4007, PT + 8 * 3: 0x1_0000_3031, GUEST_PTE: 0}
    eager = nested(adapter, mem, "r")
    assert (violation(eager), eager["gpa"]) == (0x8B, 0x3008)
    lazy = nested(adapter, mem, "r", upper_a="lazy")
    assert (lazy["k"], lazy["ec"]) == ("pf", 0x04)


@pytest.mark.parametrize(
    ("leaf", "pat", "options", "effective"),
    [
        (0x37, 7, {}, 0),
        (0x37, 6, {}, 6),
        (0x77, 0, {}, 6),
        (0x07, 1, {}, 1),
        (0x07, 6, {}, 0),
        (0x77, 6, {"cr0": 0xC001_0031}, 0),
        (0x27, 0, {"cr0": 0x31, "efer": 0, "la": 0x9ABC}, 4),
    ],
)
def test_b13_memory_type(adapter: Adapter, leaf: int, pat: int, options: dict[str, Any], effective: int) -> None:
    seen = nested(adapter, {**MEM, DATA_LEAF: 0x1_0000_9000 | leaf}, "r", "mt", pat=pat, **options)
    assert seen["mt"] == effective


def test_b14_log(adapter: Adapter) -> None:
    """Everything but the data leaf has its flags set: one D flag, one slot; then the log is full."""
    flagged = {hpa: entry | 0x300 for hpa, entry in {**UPPER, **LEAVES}.items()}
    mem = {**MEM, **flagged, DATA_LEAF: 0x1_0000_9137}
    seen = nested(adapter, mem, "w", eptp=EPTP_AD, pml=(0x5000, 0))
    assert (seen["k"], seen["pmli"]) == ("ok", 0xFFFF)
    assert seen["ch"] == {DATA_LEAF: 0x1_0000_9337, 0x5000: 0x9000}
    full = nested(adapter, {**mem, DATA_LEAF: 0x1_0000_9037}, "r", eptp=EPTP_AD, pml=(0x5000, 0xFFFF))
    assert (full["k"], full["q"], full["ch"], full["pmli"]) == ("pml", 0, {}, 0xFFFF)
    quiet = nested(adapter, mem, "r", eptp=EPTP_AD, pml=(0x5000, 0xFFFF))  # no flag to set: no exit
    assert (quiet["k"], quiet["ch"]) == ("ok", {})
    fresh = nested(adapter, mem, "w", eptp=EPTP_AD, pml=(0x5000, 511))
    assert fresh["ch"][0x5FF8] == 0x9000


def test_b15_sub_pages(adapter: Adapter) -> None:
    """gpa 12345A80: sub-page 21, whose permission is bit 42; indices 0, 0, 091H, 145H."""
    table = 0x7000
    base = {**MEM, GUEST_PTE: 0x1234_5067, PD + 8 * 0x91: 0x6007, 0x6000 + 8 * 0x145: 1 << 61 | 0x9031,
            table: 0x8001, 0x8000: 0xA001, 0xA000 + 8 * 0x91: 0xB001}  # fmt: skip
    slot, la = 0xB000 + 8 * 0x145, LA & ~0xFFF | 0xA80
    assert nested(adapter, {**base, slot: 1 << 42}, "w", la=la, spptp=table)["pa"] == 0x9A80
    assert violation(nested(adapter, {**base, slot: 1 << 40 | 1 << 44}, "w", la=la, spptp=table)) == 0x18A
    assert violation(nested(adapter, {**base, slot: 1 << 42}, "w", la=la)) == 0x18A
    for broken, qualification in (({0x8000: 0}, 1 << 11), ({0x8000: 0xA003}, 0), ({slot: 1 << 42 | 2}, 0)):
        seen = nested(adapter, {**base, slot: 1 << 42, **broken}, "w", la=la, spptp=table)
        assert (seen["k"], seen["q"]) == ("spp", qualification)


def test_b16_virtualization_exception_area() -> None:
    mem = ref.SparseMemory({0x3000: 0x1234})
    exit48 = ref.EptViolation(qualification=0x7AA, gpa=0x1234_5678, gla=0xFFFF_8000_1234_5678, entry=0)
    seen = ref.deliver_ve(mem, exit48, area=0x3000, eptp_index=3)
    assert isinstance(seen, ref.VirtualizationException)
    assert seen.information.hex() == ("30000000ffffffffaa07000000000000785634120080ffff78563412000000000300")
    assert ref.deliver_ve(mem, exit48, area=0x3000) is exit48, "the area is busy now"
    suppressed = dataclasses.replace(exit48, entry=1 << 63)
    assert ref.deliver_ve(ref.SparseMemory(), suppressed, area=0x3000) is suppressed
