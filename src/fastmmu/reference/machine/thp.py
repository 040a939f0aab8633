"""Huge pages by policy: what machine/thp.pyx does, as mm/huge_memory.c and mm/khugepaged.c of Linux 6.1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmmu.reference.machine.guest_kernel import Pages

__all__ = ["Thp"]

LARGE, AREA = 1 << 21, 512


class Thp:
    """Which areas of 2 MB may have a huge page, and the way of khugepaged.

    :param mode: "always", "madvise", "never". :param pages: that khugepaged looks at, after each `every` accesses; 0:
        there is none. :param none: pages of 512 that need not be there.
    """

    def __init__(self, mode: str, *, pages: int = 0, every: int = 0, none: int = 511) -> None:
        self.mode, self.pages, self.every, self.none = mode, pages, every, none
        self.advised: dict[tuple[int, int], bool] = {}  # process, page -> huge
        self.accesses = 0
        self.process: int | None = None  # where khugepaged goes on; None: with the first process
        self.la = 0

    def advise(self, process: int, page: int, n: int, *, huge: bool) -> None:
        """What a program says of its pages."""
        self.advised.update({(process, i): huge for i in range(page, page + n)})

    def forget(self, process: int, page: int, n: int) -> None:
        """They are unmapped."""
        for i in range(page, page + n):
            self.advised.pop((process, i), None)

    def inherit(self, process: int, child: int) -> None:
        """A fork."""
        self.advised.update({(child, page): huge for (of, page), huge in self.advised.items() if of == process})

    def advice(self, process: int, la: int) -> set[bool | None]:
        """What is said of the pages of the area."""
        first = la // LARGE * AREA
        return {self.advised.get((process, page)) for page in range(first, first + AREA)}

    def suits(self, process: int, la: int) -> bool:
        """All pages of the area are advised alike, and the mode takes that."""
        advice = self.advice(process, la)
        return advice == {True} if self.mode == "madvise" else self.mode == "always" and advice in ({None}, {True})

    def due(self) -> bool:
        """After an access of the trace: whether it is khugepaged's turn."""
        if self.every:
            self.accesses += 1
        return bool(self.every) and self.accesses % self.every == 0

    def areas(self, spaces: Mapping[int, Pages]) -> Iterator[tuple[int, int | None]]:
        """From where it was on, until it comes by the first process a second time: of each process the areas that have
        a table or a page, and suit; then None. What it yields is dealt with before the next, or it is the last."""
        begun = False
        while self.process is not None or not begun:
            if self.process is None:
                begun, self.process, self.la = True, min(spaces), 0
            process = self.process
            space = spaces[process]
            found = {first for level, first in space.tables if level == 2} | set(space.large)
            first = min((area for area in found if area >= self.la and self.suits(process, area)), default=None)
            if first is None:
                self.process, self.la = min((other for other in spaces if other > process), default=None), 0
            else:
                self.la = first + LARGE
            yield process, first
