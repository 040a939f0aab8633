"""A host's memory, given to its machines in ranges that come back."""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["Ranges"]


class Ranges:
    """Addresses 0 to `size` - 1, given out first fit: of the gaps that are large enough the lowest, from its start.

    Ranges side by side that came back are one gap.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._start = [0]  # of each gap, rising
        self._end = [size]

    def take(self, size: int) -> int | None:
        """Start of a range of `size` bytes; None: no gap is as large."""
        for i, (start, end) in enumerate(zip(self._start, self._end, strict=True)):
            if end - start < size:
                continue
            if end - start == size:
                del self._start[i], self._end[i]
            else:
                self._start[i] = start + size
            return start
        return None

    def give(self, start: int, size: int) -> None:
        """A range that was taken comes back."""
        i, end = bisect_left(self._start, start), start + size
        if i and self._end[i - 1] == start:
            i -= 1
            start = self._start[i]
            del self._start[i], self._end[i]
        if i < len(self._start) and self._start[i] == end:
            end = self._end[i]
            del self._start[i], self._end[i]
        self._start.insert(i, start)
        self._end.insert(i, end)

    @property
    def free(self) -> int:
        """Bytes in all gaps."""
        return sum(self._end) - sum(self._start)

    @property
    def largest(self) -> int:
        """Bytes of the largest gap."""
        return max((end - start for start, end in zip(self._start, self._end, strict=True)), default=0)
