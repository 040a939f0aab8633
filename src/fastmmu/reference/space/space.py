"""What an address space is asked, rights left aside: byte by byte, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...dtypes import MAPPING_DTYPE, Fault
from ..paging.ept import Ept
from ..paging.memory import Memory, holds
from ..paging.place import place_of
from ..paging.state import State, bits

__all__ = ["Hole", "compare", "read", "where"]

Rows = Sequence[Mapping[str, Any]]
"""Of an enumeration: each with the fields of ``MAPPING_DTYPE``."""


class Hole(NamedTuple):
    """Addresses side by side that have no bytes, for one cause."""

    start: int
    size: int
    fault: Fault


def _byte(mem: Memory, state: State, ept: Ept | None, va: int) -> int | Fault:
    if va > (bits(63, 0) if state.lma else bits(31, 0)):
        return Fault.GENERAL_PROTECTION  # behind the last address
    fault, pa = place_of(mem, state, va, ept)
    if pa is None:
        return fault
    if not holds(mem, pa & ~7):
        return Fault.BUS
    return mem.read64(pa & ~7) >> 8 * (pa & 7) & 0xFF


def read(
    mem: Memory, state: State, va: int, n: int, *, ept: Ept | None = None, pad: int = 0
) -> tuple[bytes, list[Hole]]:
    """Bytes from an address on, those in holes being `pad`; and the holes."""
    data, holes = bytearray(), list[Hole]()
    for at in range(va, va + n):
        byte = _byte(mem, state, ept, at)
        if not isinstance(byte, Fault):
            data.append(byte)
            continue
        data.append(pad)
        if holes and holes[-1].start + holes[-1].size == at and holes[-1].fault is byte:
            holes[-1] = holes[-1]._replace(size=holes[-1].size + 1)
        else:
            holes.append(Hole(at, 1, byte))
    return bytes(data), holes


def where(rows: Rows, pa: int, n: int = 1) -> list[int]:
    """Numbers of the rows of an enumeration that map some of n physical bytes."""
    return [i for i, row in enumerate(rows) if row["pa"] < pa + n and pa < row["pa"] + row["size"]]


MEANS = ("pa", "gpa", "user", "readable", "writable", "executable", "global_page", "large", "pat", "key", "memory_type",
         "ept_rights", "guest_shift", "ept_shift")  # fmt: skip


def compare(old: Rows, new: Rows, *, software: bool = False) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Pages that only the new enumeration has, that only the old one has, and that differ, by address and size.

    They differ in what they mean; with `software` in anything, accessed and dirty flags and ignored bits among it.
    """
    before = {(row["va"], row["size"]): i for i, row in enumerate(old)}
    after = {(row["va"], row["size"]): i for i, row in enumerate(new)}
    fields = list(MAPPING_DTYPE.names or ()) if software else MEANS
    added = [i for key, i in after.items() if key not in before]
    gone = [i for key, i in before.items() if key not in after]
    both = [(i, after[key]) for key, i in before.items() if key in after]
    return added, gone, [(i, k) for i, k in both if any(old[i][name] != new[k][name] for name in fields)]
