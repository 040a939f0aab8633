"""Recorded guests through enumeration and translation; and that the comparison can fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import reference as ref
from fastmmu.image import Guest, read_guest
from tests.conformance import guests

SAMPLES = guests.guests(guests.sample_directory())
FULL = guests.guests(guests.data_directory())
PERMISSIONS = guests.data_directory() / "permissions.npz"
IMPLEMENTATIONS = pytest.mark.parametrize(
    "own", [guests.KERNELS, guests.SPECIFICATION], ids=lambda implementation: implementation.name
)
SETS = ["info_tlb", "info_tlb_translated", "rights", "rights_accessed", "gva2gpa", "gva2gpa_translated", "unmapped",
        "unmapped_translated"]  # fmt: skip


def reports_of(own: guests.Implementation, path: Path) -> dict[str, guests.Report]:
    guest = read_guest(path)
    found = own.rows(guest)
    each = [report for question in guests.QUESTIONS for report in question(guest, own, found)]
    return {report.name.partition("/")[2]: report for report in each}


def check(own: guests.Implementation, path: Path) -> None:
    for report in reports_of(own, path).values():
        print(report.line())
        assert report.compared + report.not_compared.total() > 0
        assert report.mismatches == 0, "\n".join(report.examples)


def test_the_sample_has_each_paging_mode() -> None:
    assert {read_guest(path).state.mode.name for path in SAMPLES} == {"BITS_32", "PAE", "LEVEL_4", "LEVEL_5"}


@IMPLEMENTATIONS
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_sample(own: guests.Implementation, path: Path) -> None:
    check(own, path)


@IMPLEMENTATIONS
def test_sample_of_the_permissions(own: guests.Implementation) -> None:
    report = guests.permissions(guests.sample_directory() / "permissions.npz", own)
    assert report.compared > 1000
    assert report.mismatches == 0, "\n".join(report.examples)


@pytest.mark.skipif(not FULL, reason=f"skipped: no guests in {guests.data_directory().name}; set FASTMMU_GUESTS")
@pytest.mark.parametrize("path", FULL, ids=lambda path: path.name)
def test_full_guest(path: Path) -> None:
    check(guests.KERNELS, path)


@pytest.mark.skipif(not PERMISSIONS.exists(), reason="skipped: no permissions.npz beside the guests")
def test_full_permissions() -> None:
    report = guests.permissions(PERMISSIONS, guests.KERNELS)
    assert report.compared > 0
    assert report.mismatches == 0, "\n".join(report.examples)


# ---- the comparison itself -----------------------------------------------------------------------------------------


class Wrong(guests.Kernels):
    """Kernels that are right but for one thing."""

    def __init__(self, column: str = "", *, translated: bool = False, allowed: bool = False) -> None:
        self.column, self.translated, self.allowed = column, translated, allowed

    def rows(self, guest: Guest) -> dict[str, guests.Flags]:
        found = {name: column.copy() for name, column in super().rows(guest).items()}
        if self.column == "order":
            return {name: column[::-1] for name, column in found.items()}
        if self.column == "missing":
            return {name: column[1:] for name, column in found.items()}
        if self.column == "extra":
            return {name: np.append(column, np.uint64(1 << 30)) for name, column in found.items()}
        if self.column:
            found[self.column][-1] ^= 0x1000 if self.column in ("va", "pa", "size") else 1
        return found

    def translate(self, guest: Guest, va: guests.U64, access: str, cpl: int) -> tuple[guests.U64, guests.Flags]:
        pa, allowed = super().translate(guest, va, access, cpl)
        return pa ^ np.uint64(self.translated << 12), allowed ^ self.allowed


@pytest.mark.parametrize(
    ("wrong", "sets"),
    [
        *((Wrong(column), {"info_tlb"}) for column in ("va", "pa", "size", "flags", "order", "missing", "extra")),
        (Wrong("user"), {"rights"}),
        (Wrong("write"), {"rights"}),
        (Wrong(translated=True), {"info_tlb_translated", "gva2gpa_translated"}),
        (Wrong(allowed=True), {"rights_accessed", "unmapped_translated"}),
    ],
    ids=lambda value: value.column or f"{value.translated}-{value.allowed}" if isinstance(value, Wrong) else "",
)
def test_what_is_wrong_is_a_mismatch(wrong: Wrong, sets: set[str]) -> None:
    found = reports_of(wrong, next(path for path in SAMPLES if path.name == "l4_user"))
    assert list(found) == SETS
    for name in sets:
        assert found[name].mismatches > 0
        assert found[name].examples
    if wrong.column in ("user", "write", "flags") or wrong.translated:
        assert {name for name, report in found.items() if report.mismatches} == sets


def test_lists_that_lack_a_page_miss_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(path for path in SAMPLES if path.name == "l4_user")
    guest = read_guest(path)

    class Empty(guests.Kernels):
        def rows(self, _: Guest) -> dict[str, Any]:
            return {name: np.zeros(0, np.uint64) for name in guests.COLUMNS}

    found = reports_of(Empty(), path)
    assert found["info_tlb"].mismatches == len(guest.expected["va"])
    assert found["gva2gpa"].mismatches == len(guest.expected["gva"])
    assert found["rights"].mismatches == 2 * len(guest.expected["va"])
    assert found["unmapped"].mismatches == 0


def test_a_wrong_judgement_is_a_mismatch() -> None:
    class Eager(guests.Kernels):
        def judge(self, memory: dict[int, int], la: int, access: str, state: ref.State) -> tuple[int, list[int]]:
            return super().judge(memory, la, access, dataclasses.replace(state, upper_a="eager"))

    path = guests.sample_directory() / "permissions.npz"
    assert guests.permissions(path, Eager(), stride=5).mismatches > 0
