"""How contiguous an address space is: runs of pages that follow each other in linear and in physical addresses.

As Contiguitas (Zhao et al., ISCA 2023) and CoLT (Pham, Vaidyanathan, Jaleel, Bhattacharjee, MICRO 2012) count them: a
run goes on as long as the next linear page has the next frame. Its length is in pages of 4 KB, whatever the size of its
pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastmmu._arguments import choice, shown, whole
from fastmmu.errors import ConfigError, WrongTypeError

__all__ = ["Contiguity", "contiguity"]


@dataclass(frozen=True)
class Contiguity:
    """A histogram of runs.

    :ivar lengths: of runs, in pages of 4 KB, ascending; int64. :ivar runs: how many there are of each; int64.

    Threads: immutable; share it.
    """

    lengths: npt.NDArray[np.int64]
    runs: npt.NDArray[np.int64]

    @property
    def pages(self) -> int:
        """Pages of 4 KB, of all runs."""
        return int(self.lengths @ self.runs)

    def share(self, least: int) -> float:
        """Share of the pages that stand in runs of at least so many; 0.0 of no pages."""
        long = self.lengths >= whole("least", least)
        return int(self.lengths[long] @ self.runs[long]) / self.pages if self.pages else 0.0

    def bins(self) -> list[tuple[int, int, int, int]]:
        """By powers of two, those that have runs: (shortest, longest, runs, pages)."""
        found: list[tuple[int, int, int, int]] = []
        for length, runs in zip(self.lengths.tolist(), self.runs.tolist(), strict=True):
            low = 1 << length.bit_length() - 1
            if not found or found[-1][0] != low:
                found.append((low, 2 * low - 1, 0, 0))
            found[-1] = low, 2 * low - 1, found[-1][2] + runs, found[-1][3] + runs * length
        return found


def contiguity(mappings: Any, by: Literal["pa", "gpa"] = "pa") -> Contiguity:
    """Runs of pages of an address space.

    :param mappings: rows of dtype ``MAPPING_DTYPE``, in the order of their addresses, as :func:`fastmmu.mappings` gives
        them; or several such arrays, as :func:`fastmmu.iter_mappings` does. :param by: which physical address goes on:
        ``"pa"``, over EPT the host's; ``"gpa"``, the guest's.
    :raises WrongTypeError: something else. :raises ConfigError: `by` is neither.
    """
    by = choice("by", by, ("pa", "gpa"), ConfigError)
    chunks: Iterable[Any] = (mappings,) if isinstance(mappings, np.ndarray) else mappings
    if not hasattr(chunks, "__iter__") or isinstance(chunks, (str, bytes, bytearray, memoryview, dict)):
        raise WrongTypeError(f"mappings={shown(mappings)}: give what fastmmu.mappings or fastmmu.iter_mappings returns")
    found, last = [np.zeros(0, np.int64)], np.zeros(3, np.uint64)  # the run that goes on: next va, next pa, pages
    for rows in chunks:
        names = getattr(getattr(rows, "dtype", None), "names", None) or ()
        if not {"va", "size", by} <= set(names) or rows.ndim != 1:
            raise WrongTypeError(f"mappings: {shown(rows)} is no array of fastmmu.dtypes.MAPPING_DTYPE")
        if len(rows):
            found.append(_runs(rows["va"], rows[by], rows["size"], last))
    if last[2]:
        found.append(last[2:].astype(np.int64))
    lengths, runs = np.unique(np.concatenate(found), return_counts=True)
    return Contiguity(lengths, runs.astype(np.int64))


def _runs(va: Any, pa: Any, size: Any, last: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Lengths of the runs that end within the rows; `last`, which goes on into them, becomes the one that is open."""
    begins = np.empty(len(va), bool)
    begins[0] = not last[2] or va[0] != last[0] or pa[0] != last[1]
    begins[1:] = (va[1:] != va[:-1] + size[:-1]) | (pa[1:] != pa[:-1] + size[:-1])
    at = np.flatnonzero(begins)
    first = at if len(at) and not at[0] else np.concatenate(([0], at))
    lengths = np.add.reduceat(size >> np.uint64(12), first)
    if begins[0]:
        lengths = np.concatenate((last[2:], lengths)) if last[2] else lengths
    else:
        lengths[0] += last[2]
    last[:] = va[-1] + size[-1], pa[-1] + size[-1], lengths[-1]
    ended: npt.NDArray[np.int64] = lengths[:-1].astype(np.int64)
    return ended
