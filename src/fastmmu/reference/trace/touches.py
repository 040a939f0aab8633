"""Events of a stretch of a trace that touch a page in a new way; for what: machine/touches.pyx."""

from __future__ import annotations

from collections.abc import Iterable

from fastmmu.ops import LAST_ACCESS, Op

__all__ = ["CHANGES", "first_touches"]

CHANGES = (Op.SWITCH, Op.INVLPG, Op.UNMAP, Op.MUNMAP, Op.PROTECT, Op.UNPROTECT, Op.FORK, Op.COLLAPSE)
"""Of the process, and of what is mapped."""


def first_touches(events: Iterable[tuple[int, int, int]]) -> list[int]:
    """Places of the events (op, size, addr) that are no accesses, or do to a page of 4 KB what was not done to it since
    the process was changed or a page invalidated. A write is a read, too."""
    done: set[tuple[int, str]] = set()
    found = []
    for place, (op, size, addr) in enumerate(events):
        if op > LAST_ACCESS:
            if op in CHANGES:
                done.clear()
            found.append(place)
            continue
        if addr >> 57:
            found.append(place)
            continue
        pages = {addr >> 12, (addr + max(size, 1) - 1) >> 12}
        how = {Op.READ: "r", Op.FETCH: "x"}.get(Op(op), "rw")
        touched = {(page, letter) for page in pages if not page >> 45 for letter in how}
        if not touched <= done:
            found.append(place)
        done |= touched
    return found
