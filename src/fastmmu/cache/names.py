"""Names of what the data caches count: levels, causes of references, latencies of walks."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["CAUSE_NAMES", "LEVELS", "walk_bin_edges", "walk_bins"]

LEVELS = ("l1", "l2", "l3", "row", "dram")
"""Where a reference was found; "row": in memory, in the open row of its bank."""

CAUSE_NAMES: dict[int, str] = {
    0: "read",
    1: "write",
    2: "fetch",
    3: "kernel",
    4: "vmm",
    5: "extension",
    6: "background",
    **{8 + level: f"guest{level}" for level in range(1, 6)},
    **{16 + 8 * guest + level: f"ept{guest}.{level}" for guest in range(6) for level in range(1, 6)},
}
"""Number of a cause (cache/hierarchy.pxd) → its name. "guest3": entries of level 3 of the guest's tables; "ept3.1": EPT
entries of level 1, read to find the guest's table of level 3; "ept0.1": to find the data."""


def walk_bin_edges(number: int) -> tuple[int, int]:
    """The latencies, first and last, that a bin of the histogram holds: 4 bins a power of two, 0 to 3 one each."""
    if number < 4:
        return number, number
    power, part = number // 4 + 1, number % 4
    step = 1 << (power - 2)
    low = (1 << power) + part * step
    return low, low + step - 1


def walk_bins(counts: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """(low, high, walks) of each bin that is not empty."""
    return tuple((*walk_bin_edges(i), int(count)) for i, count in enumerate(counts) if count)
