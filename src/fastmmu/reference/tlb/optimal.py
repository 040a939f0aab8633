"""The least misses that any replacement could have: Belady, "A study of replacement algorithms for a virtual-storage
computer", IBM Systems Journal 1966. It knows what comes, so that it is a bound and no policy.

A set of one array gives up the page that comes again last. Of an array that has to take each page that it misses (a TLB
does: the walk's result is used by way of it) this is the least.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["misses"]


def misses(pages: Sequence[int], sets: int, ways: int) -> int:
    """Misses of one array that sees these pages, numbers of one size, in turn.

    :param sets: a power of two; a page's set is its number modulo this.
    """
    after: list[int] = [0] * len(pages)  # when the page of an access comes again
    coming: dict[int, int] = {}
    for at in range(len(pages) - 1, -1, -1):
        after[at] = coming.get(pages[at], len(pages))
        coming[pages[at]] = at
    held: list[dict[int, int]] = [{} for _ in range(sets)]
    n = 0
    for at, page in enumerate(pages):
        row = held[page % sets]
        if page not in row:
            n += 1
            if len(row) == ways:
                del row[max(row, key=lambda other: row[other])]
        row[page] = after[at]
    return n
