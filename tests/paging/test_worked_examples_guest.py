"""Worked examples A1-A17: guest paging, by numbers. Unless said M=46, NXE=1, WP=1, upper entries carry flags 67H."""

from __future__ import annotations

from typing import Any

import pytest

from fastmmu import reference as ref
from fastmmu.dtypes import StepKind
from tests.conformance.adapters import adapters, ask
from tests.conformance.cases import Adapter, Observed, WalkCase

LONG = {"cr0": 0x8001_0031, "cr4": 0x20, "efer": 0xD00}
PAE = {"cr0": 0x8001_0031, "cr4": 0x20, "efer": 0x800}
LEGACY = {"cr0": 0x8001_0031, "cr4": 0x10, "efer": 0x800}
WP, SMEP, SMAP, PKE, PKS, LA57 = 1 << 16, 1 << 20, 1 << 21, 1 << 22, 1 << 24, 1 << 12
NXE = 1 << 11
U, S = 3, 0
# 4-level tables that map la 40201000H page by page: indices 0, 1, 1, 1.
TABLES4 = {0x1000: 0x2067, 0x2008: 0x3067, 0x3008: 0x4067}
LA4 = 0x4020_1000


@pytest.fixture(params=adapters(), ids=lambda adapter: adapter.name)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    chosen: Adapter = request.param
    return chosen


def walk(
    adapter: Adapter, mem: dict[int, int], la: int, access: str, *fields: str, cpl: int = S, **registers: Any
) -> Observed:
    """One walk; registers default to long mode with CR3=1000."""
    options: dict[str, Any] = {**LONG, "cr3": 0x1000, "cpl": cpl, "maxphyaddr": 46, **registers}
    return ask(adapter, WalkCase(mem=mem, state=ref.State(**options), la=la, access=access), *fields)


def leaf4(adapter: Adapter, leaf: int, access: str, **registers: Any) -> Observed:
    """The access to la 40201000 through a given PTE."""
    return walk(adapter, {**TABLES4, 0x4008: leaf}, LA4, access, **registers)


def fault(seen: Observed) -> int | None:
    """Error code in hand, or None where the access was allowed."""
    assert seen["k"] in ("ok", "pf")
    return seen["ec"] if seen["k"] == "pf" else None


def reads(seen: Observed) -> list[int]:
    return [hpa for kind, _, _, hpa, _, _ in seen["steps"] if kind == StepKind.GUEST]


def test_a1_32_bit_4k(adapter: Adapter) -> None:
    mem = {0x1000: 0x0000_5067 << 32, 0x5008: 0x00AB_C067 << 32}
    seen = walk(adapter, mem, 0x0040_3025, "w", **LEGACY, cpl=U)
    assert (seen["k"], seen["pa"]) == ("ok", 0x00AB_C025)
    assert reads(seen) == [0x1004, 0x500C]
    assert seen["ch"] == {}


def test_a2_pse36(adapter: Adapter) -> None:
    seen = walk(adapter, {0x1120: 0xC001_20E7}, 0x1234_5678, "r", **LEGACY, maxphyaddr=36)
    assert (seen["pa"], seen["gps"]) == (0x9_C034_5678, 4 << 20)


@pytest.mark.parametrize(
    ("pde", "width", "error_code", "pa"),
    [
        (0xC003_20E7, 36, 0x0F, None),
        (0xC003_20E7, 40, None, 0x19_C034_5678),
        (0xC021_20E7, 40, 0x0F, None),
    ],
)
def test_a3_pse36_reserved(adapter: Adapter, pde: int, width: int, error_code: int | None, pa: int | None) -> None:
    seen = walk(adapter, {0x1120: pde}, 0x1234_5678, "w", **LEGACY, maxphyaddr=width, cpl=U)
    assert (fault(seen), seen.get("pa")) == (error_code, pa)


def test_a4_high_bits_of_pae_and_4_level(adapter: Adapter) -> None:
    leaf = 0x0010_0000_0000_9067
    pae = walk(adapter, {0x3008: 0x4067, 0x4008: leaf}, LA4, "r", **PAE, maxphyaddr=36, pdpte=(0, 0x3001, 0, 0))
    assert fault(pae) == 0x09
    assert reads(pae) == [0x3008, 0x4008]
    long = leaf4(adapter, leaf, "r", maxphyaddr=36)
    assert (long["k"], long["pa"]) == ("ok", 0x9000)
    assert reads(long) == [0x1000, 0x2008, 0x3008, 0x4008]


def test_a6_indices(adapter: Adapter) -> None:
    mem = {0x1FF8: 0x2067, 0x2810: 0x3067, 0x3468: 0x4067, 0x4158: 0x5067, 0x53C0: 0x9067}
    seen = walk(adapter, mem, 0xFFFF_8123_4567_89AB, "r", cr4=0x20 | LA57)
    assert reads(seen) == [0x1000 + 8 * 0x1FF, 0x2000 + 8 * 0x102, 0x3000 + 8 * 0x08D, 0x4000 + 8 * 0x02B, 0x53C0]
    assert 0x53C0 == 0x5000 + 8 * 0x078
    assert seen["pa"] == 0x99AB


@pytest.mark.parametrize(("nxe", "smep", "error_code"), [(0, 0, 0x04), (0, SMEP, 0x14), (NXE, 0, 0x14)])
def test_a7_fetch_bit(adapter: Adapter, nxe: int, smep: int, error_code: int) -> None:
    seen = leaf4(adapter, 0, "x", cpl=U, efer=0x500 | nxe, cr4=0x20 | smep)
    assert fault(seen) == error_code
    legacy = walk(adapter, {}, 0, "x", cr0=0x8001_0031, cr4=0x10 | smep, efer=nxe, cpl=U)
    assert fault(legacy) == 0x04 | (0x10 if smep else 0)  # NXE means nothing without PAE


@pytest.mark.parametrize(
    ("wp", "smap", "ac", "error_code"), [(0, 0, 0, None), (WP, 0, 0, 0x03), (0, SMAP, 0, 0x03), (0, SMAP, 1, None)]
)
def test_a8_wp_and_smap(adapter: Adapter, wp: int, smap: int, ac: int, error_code: int | None) -> None:
    seen = leaf4(adapter, 0x9025, "w", cr0=0x8000_0031 | wp, cr4=0x20 | smap, ac=ac)
    assert fault(seen) == error_code
    assert seen["ch"] == ({0x4008: 0x9065} if error_code is None else {})


@pytest.mark.parametrize(("ac", "implicit", "cpl", "error_code"), [(0, 0, S, 1), (1, 0, S, None), (1, 1, U, 1)])
def test_a9_smap_read(adapter: Adapter, ac: int, implicit: int, cpl: int, error_code: int | None) -> None:
    assert fault(leaf4(adapter, 0x9067, "r", cr4=0x20 | SMAP, ac=ac, implicit=implicit, cpl=cpl)) == error_code


def test_a10_smep_and_xd(adapter: Adapter) -> None:
    assert fault(leaf4(adapter, 0x9067, "x", cr4=0x20 | SMEP)) == 0x11
    assert fault(leaf4(adapter, 0x9067, "x")) is None
    assert fault(leaf4(adapter, 0x8000_0000_0000_9067, "x", cpl=U)) == 0x15


@pytest.mark.parametrize(
    ("flags", "access", "cpl", "wp", "pkru", "error_code"),
    [
        (0x9067, "w", U, WP, 0x20, 0x27),
        (0x9067, "w", S, 0, 0x20, None),
        (0x9067, "w", S, WP, 0x20, 0x23),
        (0x9025, "w", U, WP, 0x20, 0x27),
        (0x9067, "r", U, WP, 0x10, 0x25),
        (0x9067, "x", U, WP, 0x30, None),
    ],
)
def test_a11_pku(
    adapter: Adapter, flags: int, access: str, cpl: int, wp: int, pkru: int, error_code: int | None
) -> None:
    seen = leaf4(adapter, 2 << 59 | flags, access, cpl=cpl, cr0=0x8000_0031 | wp, cr4=0x20 | PKE, pkru=pkru)
    assert fault(seen) == error_code


def test_a12_key_of_a_supervisor_page(adapter: Adapter) -> None:
    leaf = 2 << 59 | 0x9063
    assert fault(leaf4(adapter, leaf, "r", cpl=U, cr4=0x20 | PKE, pkru=0x30)) == 0x05
    assert fault(leaf4(adapter, leaf, "r", cr4=0x20 | PKE, pkru=0x30)) is None
    assert fault(leaf4(adapter, leaf, "r", cr4=0x20 | PKS, pkrs=0x30)) == 0x21


@pytest.mark.parametrize(
    ("la", "canonical48", "canonical57"),
    [
        (0x0000_7FFF_FFFF_FFFF, True, True),
        (0x0000_8000_0000_0000, False, True),
        (0xFFFF_7FFF_FFFF_FFFF, False, True),
        (0xFFFF_8000_0000_0000, True, True),
        (0x0100_0000_0000_0000, False, False),
        (0xFF00_0000_0000_0000, False, True),
    ],
)
def test_a13_canonical(adapter: Adapter, la: int, canonical48: bool, canonical57: bool) -> None:
    for cr4, canonical in ((0x20, canonical48), (0x20 | LA57, canonical57)):
        seen = walk(adapter, {}, la, "r", cr4=cr4)
        assert seen["k"] == ("pf" if canonical else "gp")
        assert (seen["steps"] == []) is not canonical
        assert seen.get("cr2") == (la if canonical else None)


@pytest.mark.parametrize(
    ("pml4e", "pdpte", "gb_pages", "error_code", "pa"),
    [
        (0x2067, 0x4000_E0E7, 1, 0x09, None),
        (0x2067, 0x4000_10E7, 1, None, 0x4000_0123),
        (0x2067, 0x4000_10E7, 0, 0x09, None),
        (0x20E7, 0x4000_10E7, 1, 0x09, None),
    ],
)
def test_a14_large_page_reserved(
    adapter: Adapter, pml4e: int, pdpte: int, gb_pages: int, error_code: int | None, pa: int | None
) -> None:
    seen = walk(adapter, {0x1000: pml4e, 0x2000: pdpte}, 0x123, "r", gb_pages=gb_pages)
    assert (fault(seen), seen.get("pa")) == (error_code, pa)


def test_a15_priority(adapter: Adapter) -> None:
    bad = 1 << 50
    assert fault(walk(adapter, {0x1000: bad | 0x2067}, LA4, "r")) == 0x09  # PDPTE not present: never looked at
    assert fault(walk(adapter, {**TABLES4, 0x3008: 0x4066, 0x4008: bad | 0x9067}, LA4, "r")) == 0x00
    assert fault(leaf4(adapter, bad | 0x9025, "w", cpl=U)) == 0x0F


@pytest.mark.parametrize("upper_a", ["eager", "lazy"])
def test_a16_accessed_and_dirty(adapter: Adapter, upper_a: str) -> None:
    clear = {0x1000: 0x2007, 0x2008: 0x3007, 0x3008: 0x4007}
    upper = {0x1000: 0x2027, 0x2008: 0x3027, 0x3008: 0x4027}
    options: dict[str, Any] = {"cpl": U, "upper_a": upper_a}
    written = walk(adapter, {**clear, 0x4008: 0x9007}, LA4, "w", **options)
    assert written["ch"] == {**upper, 0x4008: 0x9067}
    assert len([s for s in written["steps"] if s[0] == StepKind.GUEST_AD]) == 4
    assert walk(adapter, {**clear, 0x4008: 0x9007}, LA4, "r", **options)["ch"] == {**upper, 0x4008: 0x9027}
    faulted = walk(adapter, {**clear, 0x4008: 0x9006}, LA4, "w", **options)
    assert fault(faulted) == 0x06
    assert faulted["ch"] == (upper if upper_a == "eager" else {})


@pytest.mark.parametrize(
    ("flags", "pat", "mtrr", "effective"),
    [
        (0x80 | 0x08, 0x0007_0406_0007_0406, 6, 4),  # PAT=1, PCD=0, PWT=1: index 5 is WT
        (0x80 | 0x08, 0x0007_0406_0007_0406, 0, 0),
        (0x80 | 0x08, 0x0007_0406_0007_0406, 5, 4),
        (0x10, 0x0007_0406_0007_0406, 5, 1),  # index 2 is UC-: WC under a WP range
        (0x80 | 0x10, 0x0007_0406_0007_0406, 5, 1),  # index 6 likewise
        (0x08, 0x0007_0406_0007_0506, 1, 0),  # index 1 made WP: UC under a WC range
    ],
)
def test_a17_memory_type(adapter: Adapter, flags: int, pat: int, mtrr: int, effective: int) -> None:
    mem = {**TABLES4, 0x4008: 0x9067 | flags}
    seen = walk(adapter, mem, LA4, "r", "mt", pat=pat, mtrrs=ref.Mtrrs(def_type=0x800 | mtrr))
    assert seen["mt"] == effective
