"""The mappings of an address space: in ranges for people, a row each in files. Both take one array after the other."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmmu.dtypes import ALL_ONES, MAPPING_DTYPE, Fault
from fastmmu.report.bits import MEMORY_TYPES, address, entry_name, size_name
from fastmmu.report.files import arrow, made_by

__all__ = ["Range", "heading", "line", "lines", "nowhere", "ranges", "write_csv", "write_json", "write_parquet"]

Rows = npt.NDArray[np.void]

_COLUMNS = tuple(MAPPING_DTYPE.names or ())
_ADDRESSES = ("va", "pa", "gpa", "leaf")
_ALIKE = ("size", "user", "readable", "writable", "executable", "global_page", "memory_type")
_LETTERS = (("readable", "r"), ("writable", "w"), ("executable", "x"), ("user", "u"), ("global_page", "g"))


# ---- for people ---------------------------------------------------------------------------------------------------


class Range(NamedTuple):
    """Mappings side by side that agree in page size, rights and memory type."""

    va: int
    size: int  # bytes, all together
    page: int  # bytes of one
    pa: int  # of the first
    gpa: int
    contiguous: bool  # the physical addresses go on as the linear ones do
    rights: str  # letters of rwxug, or -
    memory_type: str

    def like(self, other: Range) -> bool:
        """Are they the same but for where they lie?"""
        return (self.size, self.page, self.rights, self.memory_type) == (
            other.size, other.page, other.rights, other.memory_type
        )  # fmt: skip

    def followed_by(self, other: Range) -> Range | None:
        """Both as one range, if they are one."""
        if self.va + self.size != other.va or self[2:3] + self[6:] != other[2:3] + other[6:]:
            return None
        contiguous = self.contiguous and other.contiguous and self.pa + self.size == other.pa
        return self._replace(size=self.size + other.size, contiguous=contiguous)


def ranges(chunks: Iterable[Rows]) -> Iterator[Range]:
    """The mappings as ranges; `chunks` are arrays of dtype ``MAPPING_DTYPE`` in the order of their addresses."""
    last: Range | None = None
    for rows in chunks:
        for found in _merged(rows):
            together = last.followed_by(found) if last else None
            if last and together is None:
                yield last
            last = together or found
    if last:
        yield last


def _merged(rows: Rows) -> Iterator[Range]:
    """The ranges of one array."""
    same = rows["va"][1:] == rows["va"][:-1] + rows["size"][:-1]
    for name in _ALIKE:
        same &= rows[name][1:] == rows[name][:-1]
    goes_on = same & (rows["pa"][1:] == rows["pa"][:-1] + rows["size"][:-1])
    first = np.flatnonzero(np.concatenate([[True], ~same])) if len(rows) else np.zeros(0, np.intp)
    after = np.append(first[1:], len(rows))
    scattered = np.append(0, np.cumsum(same & ~goes_on))
    for i, end in zip(first.tolist(), after.tolist(), strict=True):
        row = rows[i]
        page = int(row["size"])
        yield Range(
            va=int(row["va"]),
            size=page * (end - i),
            page=page,
            pa=int(row["pa"]),
            gpa=int(row["gpa"]),
            contiguous=bool(scattered[end - 1] == scattered[i]),
            rights="".join(letter if row[name] else "-" for name, letter in _LETTERS),
            memory_type=MEMORY_TYPES[int(row["memory_type"])],
        )


def lines(found: Iterable[Range], *, ept: bool, width: int = 120) -> Iterator[str]:
    """A line a range, under :func:`heading`; many alike at equal distances are one line and a word on the others."""
    run: list[Range] = []  # the first of those alike
    last, count = None, 0
    for each in found:
        if not (last and each.like(last) and (count == 1 or each.va - last.va == run[1].va - run[0].va)):
            yield from _run(run, last, count, ept, width)
            run, count = [], 0
        if count < SHOWN:
            run.append(each)
        last, count = each, count + 1
    yield from _run(run, last, count, ept, width)


def _run(run: list[Range], last: Range | None, count: int, ept: bool, width: int) -> Iterator[str]:
    yield from (line(each, ept=ept, width=width) for each in (run if count <= SHOWN else run[:1]))
    if last and count > SHOWN:
        stride = size_name(run[1].va - run[0].va)
        yield f"  and {count - 1:,} more like it, one every {stride}, the last at {address(last.va)}"


SHOWN = 4  # ranges alike that are shown each by itself
_WIDTHS = (40, 10, 17, 6, 4)


def _fits(ept: bool, width: int) -> bool:
    return sum(_WIDTHS) + 2 * (len(_WIDTHS) + ept) + 14 * (1 + ept) <= width


def heading(*, ept: bool, width: int = 120) -> str:
    """Titles over the lines of :func:`line`."""
    if not _fits(ept, width):
        return f"linear addresses\n  bytes, pages, rights, type; {'guest-physical, ' if ept else ''}physical"
    titles = [f"{'linear addresses':{_WIDTHS[0]}}", f"{'bytes':>{_WIDTHS[1]}}", f"{'pages':>{_WIDTHS[2]}}"]
    return "  ".join([*titles, "rights", "type", *(["guest-physical"] if ept else []), "physical"])


def line(found: Range, *, ept: bool, width: int = 120) -> str:
    """One range, on two lines where `width` is too little; `+` behind the physical address: the pages lie elsewhere one
    by one."""
    last = found.va + found.size - 1
    pages = f"{found.size // found.page:,} x {size_name(found.page)}"
    where = f"{address(found.pa)}{'' if found.contiguous else ' +'}"
    if not _fits(ept, width):
        guest = f"{address(found.gpa)}, " if ept else ""
        kind = f"{size_name(found.size)}, {pages}, {found.rights}, {found.memory_type}"
        return f"{address(found.va)}..{address(last)}\n  {kind}; {guest}{where}"
    parts = [f"{f'{address(found.va)}..{address(last)}':{_WIDTHS[0]}}", f"{size_name(found.size):>{_WIDTHS[1]}}"]
    parts += [f"{pages:>{_WIDTHS[2]}}", f"{found.rights:{_WIDTHS[3]}}", f"{found.memory_type:{_WIDTHS[4]}}"]
    return "  ".join([*parts, *([f"{address(found.gpa):14}"] if ept else []), where])


_NOWHERE = {
    Fault.PAGE_FAULT: "entries with a reserved bit",
    Fault.GENERAL_PROTECTION: "PDPTEs with a reserved bit, so that CR3 cannot be loaded",
    Fault.EPT_VIOLATION: "places that the EPT does not map",
    Fault.EPT_MISCONFIG: "malformed EPT entries",
    Fault.BUS: "tables outside the memory given",
    Fault.NESTED_PAGE_FAULT: "places that the NPT does not map, and malformed entries of it",
}


def _second(row: Any) -> str:
    return "NPT " if row["fault"] == Fault.NESTED_PAGE_FAULT else "EPT "


def nowhere(skipped: dict[Fault, int], faults: Rows, *, listed: bool) -> list[str]:
    """Where tables lead nowhere: how often, and with `listed` those that were kept (``MAPPING_FAULT_DTYPE``)."""
    lines = [f"{count:,} {_NOWHERE[fault]}" for fault, count in skipped.items()]
    for row in faults if listed else ():
        name = entry_name(int(row["level"]), of=_second(row) if row["ept"] else "") if row["level"] else "PDPTE"
        entry = f"{name} {int(row['entry']):x} at {address(int(row['hpa']))}" if row["hpa"] != ALL_ONES else "no entry"
        lines.append(f"  {address(int(row['va']))}, {size_name(int(row['size']))}: {Fault(row['fault']).name}, {entry}")
    return lines


# ---- files --------------------------------------------------------------------------------------------------------


def _columns(rows: Rows, *, text: bool) -> dict[str, list[Any]]:
    """By name; `text`: addresses as "0x..."."""
    found = {name: rows[name].tolist() for name in _COLUMNS}
    found["memory_type"] = [MEMORY_TYPES[number] for number in found["memory_type"]]
    if text:
        found |= {name: [f"{value:#x}" for value in found[name]] for name in _ADDRESSES}
    return found


def write_csv(chunks: Iterable[Rows], file: BinaryIO, command: str = "") -> None:
    """A row a mapping, and no word of `command`: the fields of ``MAPPING_DTYPE``, addresses in hexadecimal, memory
    types by name."""
    text = io.TextIOWrapper(file, "ascii", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for rows in chunks:
        writer.writerows(zip(*_columns(rows, text=True).values(), strict=True))
    text.detach()


def write_json(chunks: Iterable[Rows], file: BinaryIO, command: str = "") -> None:
    """An object with ``fastmmu``, ``command`` and the list ``mappings``, an object each: the fields of
    :func:`write_csv`."""
    import msgspec

    file.write(msgspec.json.encode(made_by(command))[:-1] + b', "mappings": [')
    before = b"\n"
    for rows in chunks:
        for values in zip(*_columns(rows, text=True).values(), strict=True):
            file.write(before + msgspec.json.encode(dict(zip(_COLUMNS, values, strict=True))))
            before = b",\n"
    file.write(b"\n]}\n")


def write_parquet(chunks: Iterable[Rows], file: BinaryIO, command: str = "") -> None:
    """A row a mapping: addresses and sizes as unsigned 64-bit integers, memory types by name; ``fastmmu`` and
    ``command`` in the metadata.

    :raises MissingExtraError: pyarrow is not installed.
    """
    pyarrow = arrow()
    kinds = {name: pyarrow.uint64() if MAPPING_DTYPE[name].itemsize == 8 else pyarrow.uint8() for name in _COLUMNS}
    schema = pyarrow.schema({**kinds, "memory_type": pyarrow.string()}, metadata=made_by(command))
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for rows in chunks:
            columns: dict[str, Any] = {name: np.ascontiguousarray(rows[name]) for name in _COLUMNS}
            columns["memory_type"] = _columns(rows, text=False)["memory_type"]
            writer.write_table(pyarrow.table(columns, schema=schema))
