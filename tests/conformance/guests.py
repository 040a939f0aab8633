"""Guests recorded from QEMU: what its monitor said of their address spaces, through enumeration and translation.

A directory holds a directory a guest (`fastmmu.image.read_guest`) and, perhaps, `permissions.npz`: accesses of a
guest over tables of all kinds, as a real KVM's software walker judged them (the arrays named `*_shadow`).

    info_tlb    every row: address, page, size, flags of the leaf, and its place among the rows
    rights      U/S and R/W of all levels together, as `info mem` has them
    gva2gpa     addresses that the monitor translated
    unmapped    addresses that it said are not mapped

Each is put to enumeration and, by a second set (`*_translated`, `*_accessed`), to translation: the first and last byte
of each row, and the accesses that its rights allow or refuse. No disagreement is known, so nothing is masked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import fastmmu
from fastmmu import reference as ref
from fastmmu.image import Guest, read_guest
from tests.support.recordings import all_of, sample_of

from .vectors import Report

__all__ = [
    "KERNELS",
    "SPECIFICATION",
    "Implementation",
    "any_data",
    "data_directory",
    "guests",
    "reports",
    "run",
    "sample_directory",
]

U64 = npt.NDArray[np.uint64]
Flags = npt.NDArray[Any]
LETTERS = (1, 2, 3, 4, 5, 6, 7, 8, 63)  # bit of a leaf behind each of W U T C A D P G X
COLUMNS = ("va", "pa", "size", "flags", "user", "write")
KVM_WIDTH = 40  # MAXPHYADDR of the machine that recorded `permissions.npz`


# ---- files -----------------------------------------------------------------------------------------------------


def sample_directory() -> Path:
    """The reduced guests that the project carries."""
    return sample_of("guests")


def data_directory() -> Path:
    """FASTMMU_GUESTS, else ../shared/guests beside the project."""
    return all_of("guests", "FASTMMU_GUESTS")


def guests(directory: Path) -> list[Path]:
    """The guests of a directory, in the order of their names."""
    return sorted(path.parent for path in directory.glob("*/meta.json"))


def any_data(directory: Path) -> bool:
    """Is there anything to compare?"""
    return bool(guests(directory)) or (directory / "permissions.npz").exists()


# ---- implementations -----------------------------------------------------------------------------------------------


class Implementation(Protocol):
    name: str
    stride: int  # of the rows that are also translated

    def rows(self, guest: Guest) -> dict[str, Flags]:
        """The columns of COLUMNS, a row a mapping."""

    def translate(self, guest: Guest, va: U64, access: str, cpl: int) -> tuple[U64, Flags]:
        """(physical addresses, whether the access is allowed)."""

    def judge(self, memory: dict[int, int], la: int, access: str, state: ref.State) -> tuple[int, list[int]]:
        """(#PF error code or -1, the entries afterwards) of one access. `memory`: entries by their addresses."""


def columns(va: U64, pa: U64, size: U64, leaf: U64, user: Flags, write: Flags) -> dict[str, Flags]:
    flags = sum((leaf >> np.uint64(bit) & np.uint64(1)) << np.uint64(i) for i, bit in enumerate(LETTERS))
    flags = np.where(size == 4096, flags & ~np.uint64(1 << 6), flags)  # P is the PAT bit of a small page
    return dict(zip(COLUMNS, (va, pa, size, flags, user, write), strict=True))


class Kernels:
    name = "kernels"
    stride = 1
    memory = fastmmu.PhysicalMemory(0x1_0000)  # of `judge`

    def rows(self, guest: Guest) -> dict[str, Flags]:
        rows = fastmmu.mappings(guest.memory, guest.state)
        return columns(rows.va, rows.pa, rows["size"], rows.leaf, rows.user, rows.writable)

    def translate(self, guest: Guest, va: U64, access: str, cpl: int) -> tuple[U64, Flags]:
        found = fastmmu.translate(guest.memory, guest.state.replace(cpl=cpl, ac=1), va, access=access)
        return found.pa, found.fault == 0

    def judge(self, memory: dict[int, int], la: int, access: str, state: ref.State) -> tuple[int, list[int]]:
        if max(memory) >= self.memory.nbytes:
            self.memory = fastmmu.PhysicalMemory(max(memory) + 8)
        for pa, entry in memory.items():
            self.memory.write64(pa, entry)
        names = ("cr0", "cr3", "cr4", "efer", "cpl", "ac", "maxphyaddr", "upper_a")
        registers = fastmmu.GuestState(**{name: getattr(state, name) for name in names})
        walk = fastmmu.walk(self.memory, registers, la, access=access, set_ad=True)
        assert walk.cr2 in (None, la)
        return error_of(walk.fault, walk.error_code), [self.memory.read64(pa) for pa in memory]


class Specification:
    name = "executable specification"
    stride = 40

    def state(self, guest: Guest, **others: int) -> ref.State:
        given = guest.state
        names = ("cr0", "cr3", "cr4", "efer", "cpl", "maxphyaddr")
        registers = {name: getattr(given, name) for name in names} | others
        return ref.State(**registers, pdpte=tuple(given.pdptes or (0, 0, 0, 0)))  # type: ignore[arg-type]

    def rows(self, guest: Guest) -> dict[str, Flags]:
        found = list(ref.mappings(ref.ArrayMemory(guest.memory.u64), self.state(guest)))
        table = np.array([(m.va, m.pa, m.size, m.leaf, m.us, m.rw) for m in found], np.uint64).reshape(-1, 6)
        return columns(*table.T)

    def translate(self, guest: Guest, va: U64, access: str, cpl: int) -> tuple[U64, Flags]:
        memory, state = ref.ArrayMemory(guest.memory.u64), self.state(guest, cpl=cpl, ac=1)
        walks = [ref.walk(memory, state, la, access, write=False) for la in va.tolist()]
        pa = [walk.pa if isinstance(walk, ref.Mapped) else (1 << 64) - 1 for walk in walks]
        return np.array(pa, np.uint64), np.array([isinstance(walk, ref.Mapped) for walk in walks], bool)

    def judge(self, memory: dict[int, int], la: int, access: str, state: ref.State) -> tuple[int, list[int]]:
        sparse = ref.SparseMemory(memory, max(memory) + 8)
        walk = ref.walk(sparse, state, la, access)
        assert not isinstance(walk, ref.PageFault) or walk.cr2 == la
        return error_of(walk.fault, getattr(walk, "error_code", None)), [sparse.read64(pa) for pa in memory]


KERNELS, SPECIFICATION = Kernels(), Specification()


def error_of(fault: int, code: int | None) -> int:
    """As the arrays have it: -1 for no fault."""
    if code is not None:
        return code
    return -1 if fault == fastmmu.Fault.NONE else -2


# ---- comparison -----------------------------------------------------------------------------------------------------

SLOW = "this implementation is slow"
UNKNOWN = "no expectation was recorded"


@dataclass
class _Tally:
    """One report under way."""

    report: Report
    examples: int = 5

    @staticmethod
    def of(guest: Guest, question: str) -> _Tally:
        return _Tally(Report(f"{guest.name}/{question}"))

    def compare(self, what: str, va: U64, want: Flags, got: Flags) -> None:
        """Element by element."""
        wrong = np.flatnonzero(want != got)
        self.report.compared += len(want)
        self.report.mismatches += len(wrong)
        for i in wrong.tolist():
            self.example(f"{int(va[i]):#x}: {what}: expected {int(want[i]):#x}, got {int(got[i]):#x}")

    def example(self, text: str) -> None:
        if len(self.report.examples) < self.examples:
            self.report.examples.append(f"{self.report.name} {text}")

    def leave(self, why: str, count: int) -> None:
        if count:
            self.report.not_compared[why] += count


def joined(*columns: Flags) -> npt.NDArray[np.void]:
    """Columns as one array of rows, which compare as a whole."""
    rows = np.empty(len(columns[0]), [(name, "<u8") for name in COLUMNS[: len(columns)]])
    for name, column in zip(COLUMNS, columns, strict=False):
        rows[name] = column
    return rows


def info_tlb(guest: Guest, own: Implementation, found: dict[str, Flags]) -> Iterator[Report]:
    """A row is right if it stands at its place with all its columns; a row too much is a mismatch as one too little."""
    tally, e = _Tally.of(guest, "info_tlb"), guest.expected
    want = joined(e["va"], e["pa"], e["page_size"], e["flags"])
    got = joined(*(found[name] for name in COLUMNS[:4]))
    tally.report.compared = len(want)
    if not np.array_equal(want, got):
        missing, extra = np.setdiff1d(want, got), np.setdiff1d(got, want)
        tally.report.mismatches = max(1, len(missing), len(extra))
        for word, rows in (("expected", missing), ("got", extra)):
            for row in rows[:2].tolist():
                tally.example(f"{word} {' '.join(f'{value:#x}' for value in row)}")
        if not len(missing) and not len(extra):
            tally.example("the rows are right, their order is not")
    yield tally.report

    tally = _Tally.of(guest, "info_tlb_translated")
    va, size, pa = (e[name][:: own.stride] for name in ("va", "page_size", "pa"))
    for what, offset in (("first byte", size * np.uint64(0)), ("last byte", size - np.uint64(1))):
        tally.compare(what, va + offset, pa + offset, own.translate(guest, va + offset, "r", 0)[0])
    tally.leave(SLOW, 2 * (len(e["va"]) - len(va)))
    yield tally.report


def rights(guest: Guest, own: Implementation, found: dict[str, Flags]) -> Iterator[Report]:
    tally, e = _Tally.of(guest, "rights"), guest.expected
    unknown = np.full(len(e["va"]), -1, np.int8)
    user, write = e.get("eff_user", unknown), e.get("eff_write", unknown)
    place = np.searchsorted(found["va"], e["va"])
    for name, want in (("user", user), ("write", write)):
        known = want >= 0
        column = np.append(found[name].astype(np.int64), -1)  # -1: no row
        tally.compare(name, e["va"][known], want[known], column[np.minimum(place[known], len(column) - 1)])
        tally.leave(UNKNOWN, int(np.count_nonzero(~known)))
    yield tally.report

    tally = _Tally.of(guest, "rights_accessed")
    known = np.flatnonzero((user >= 0) & (write >= 0))
    picked = known[:: own.stride]
    va = e["va"][picked]
    for what, access, cpl, want in (
        ("read by user mode", "r", 3, user),
        ("write by user mode", "w", 3, user & write),
        ("write by the kernel", "w", 0, write),
    ):
        tally.compare(what, va, want[picked], own.translate(guest, va, access, cpl)[1].astype(np.int8))
    tally.leave(SLOW, 3 * (len(known) - len(picked)))
    tally.leave(UNKNOWN, 3 * (len(user) - len(known)))
    yield tally.report


def covering(found: dict[str, Flags], va: U64) -> tuple[U64, Flags]:
    """(physical address, whether there is one) by the list of mappings."""
    if not len(found["va"]):
        return np.zeros_like(va), np.zeros(len(va), bool)
    at = np.maximum(np.searchsorted(found["va"], va, side="right"), 1) - 1
    offset = va - found["va"][at]
    return found["pa"][at] + offset, (va >= found["va"][at]) & (offset < found["size"][at])


def gva2gpa(guest: Guest, own: Implementation, found: dict[str, Flags]) -> Iterator[Report]:
    va, want = guest.expected["gva"], guest.expected["gpa"]
    pa, mapped = covering(found, va)
    for question, got in (
        ("gva2gpa", np.where(mapped, pa, ~np.uint64(0))),
        ("gva2gpa_translated", own.translate(guest, va, "r", 0)[0]),
    ):
        tally = _Tally.of(guest, question)
        tally.compare("address", va, want, got)
        yield tally.report


def unmapped(guest: Guest, own: Implementation, found: dict[str, Flags]) -> Iterator[Report]:
    va = guest.expected["unmapped_va"]
    for question, got in (
        ("unmapped", covering(found, va)[1]),
        ("unmapped_translated", own.translate(guest, va, "r", 0)[1]),
    ):
        tally = _Tally.of(guest, question)
        tally.compare("mapped", va, np.zeros(len(va), bool), got)
        yield tally.report


def tables_of(arrays: dict[str, Flags]) -> tuple[int, list[int], Flags]:
    """(linear address, where the entries of a walk lie, which walks leave those tables) of `permissions.npz`.

    The address is that of the faults; the tables are those that most entries point at, a free frame holds the root.
    """
    entries, cr2 = arrays["entries"], arrays["cr2_shadow"][arrays["err_shadow"] >= 0]
    seen, counts = np.unique(cr2, return_counts=True)
    la = int(seen[counts.argmax()]) if len(seen) else 0
    frame = np.uint64((1 << KVM_WIDTH) - (1 << 12))
    high = np.uint64(((1 << 52) - (1 << KVM_WIDTH)) | 1 << 7)  # reserved, or a page: the walk goes no further
    goes_on = np.ones(len(entries), bool)
    elsewhere = np.zeros(len(entries), bool)
    places, at = [], 0
    for level in (3, 2, 1):
        column = entries[:, 3 - level]
        goes_on &= (column & np.uint64(1) != 0) & (column & high == 0)
        frames, counts = np.unique(column[goes_on] & frame, return_counts=True)
        at = int(frames[counts.argmax()]) if len(frames) else at + 0x1000
        elsewhere |= goes_on & (column & frame != at)
        goes_on &= ~elsewhere
        places.append(at + 8 * (la >> (12 + 9 * (level - 1)) & 511))
    root = next(f for f in range(0x1000, 0x10_0000, 0x1000) if f not in [place & ~0xFFF for place in places])
    return la, [root + 8 * (la >> 39 & 511), *places], elsewhere


def permissions(path: Path, own: Implementation, stride: int = 1) -> Report:
    """Every access of `permissions.npz`: error code, CR2 and the entries afterwards."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    la, places, elsewhere = tables_of(arrays)
    tally = _Tally(Report("permissions"))
    tally.leave("a table that was not recorded", int(np.count_nonzero(elsewhere[::stride])))
    tally.leave("every n-th was asked for", len(elsewhere) - len(elsewhere[::stride]))
    a = {name: array.tolist() for name, array in arrays.items()}
    for i in range(0, len(elsewhere), stride):
        if elsewhere[i]:
            continue
        state = ref.State(
            cr0=0x8000_0031 | a["cr0_wp"][i] << 16,
            cr3=places[0] & ~0xFFF,
            cr4=0x20 | a["smep"][i] << 20 | a["smap"][i] << 21,
            efer=0x500 | a["nxe"][i] << 11,
            cpl=a["cpl"][i],
            ac=a["ac"][i],
            maxphyaddr=KVM_WIDTH,
            upper_a="lazy",
        )
        memory = dict(zip(places, a["entries"][i], strict=True))
        error, after = own.judge(memory, la, "rwx"[a["access"][i]], state)
        tally.report.compared += 1
        want = (a["err_shadow"][i], a["after_shadow"][i])
        if (error, after) != want or a["cr2_shadow"][i] != (la if want[0] >= 0 else 0):
            tally.report.mismatches += 1
            shown = (f"{code} {' '.join(f'{entry:x}' for entry in left)}" for code, left in (want, (error, after)))
            tally.example("{}: expected {}, got {}".format(i, *shown))
    return tally.report


QUESTIONS = (info_tlb, rights, gva2gpa, unmapped)


def reports(own: Implementation, directory: Path, only: str = "", stride: int = 1) -> Iterator[Report]:
    """All reports of a directory; `only`: of guests whose name contains this; `stride`: of the permissions."""
    for path in guests(directory):
        if only in path.name:
            guest = read_guest(path)
            found = own.rows(guest)
            for question in QUESTIONS:
                yield from question(guest, own, found)
    path = directory / "permissions.npz"
    if path.exists() and only in path.stem:
        yield permissions(path, own, stride)


def run(chosen: Sequence[Implementation], directory: Path | None = None, only: str = "", stride: int = 1) -> int | None:
    """Print the reports of these implementations; the number of mismatches, None where there was nothing to compare.

    `directory`: of the guests; None: that of FASTMMU_GUESTS, else the sample.
    """
    where = directory or data_directory()
    if directory is None and not any_data(where):
        print(f"no guests in {where}: the sample in the project is used; FASTMMU_GUESTS names another directory")
        where = sample_directory()
    mismatches = None
    for own in chosen:
        begin = time.perf_counter()
        for number, report in enumerate(reports(own, where, only, stride)):
            if not number:
                print(f"guests, {own.name}:")
            mismatches = (mismatches or 0) + report.show(begin)
            begin = time.perf_counter()
    return mismatches
