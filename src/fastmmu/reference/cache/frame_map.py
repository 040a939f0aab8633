"""Frames of the host's memory, permuted: what cache/frame_map.pxd does."""

from __future__ import annotations

import math
from collections.abc import Callable

from fastmmu.reference.machine.frames import permutation

__all__ = ["frame_map", "whole_blocks"]


def whole_blocks(share: float | None, seed: int, nbytes: int) -> Callable[[int], bool]:
    """Whether the 2 MB at a host-physical address are one page: `frame_map` has moved none of its pages apart."""
    mapped = frame_map(share, seed, nbytes, 4096)
    return lambda hpa: all(mapped(hpa + (i << 12)) == mapped(hpa) + (i << 12) for i in range(512))


def frame_map(share: float | None, seed: int, nbytes: int, page: int) -> Callable[[int], int]:
    """Where a host-physical address lies.

    :param share: of the blocks of 2 MB, those whose pages of 4 KB are mixed with each other; None: all is linear.
    :param page: 4096, or 2097152: blocks stay whole.
    """
    blocks = nbytes >> 21
    if share is None or not blocks:
        return lambda hpa: hpa
    broken = math.floor(share * blocks + 0.5) << 9 if page == 4096 else 0
    of_blocks, of_pages = permutation(blocks, seed), permutation(broken, seed + 1)

    def mapped(hpa: int) -> int:
        if hpa >= blocks << 21:
            return hpa
        frame = of_blocks(hpa >> 21) << 9 | (hpa >> 12 & 511)
        if frame < broken:
            frame = of_pages(frame)
        return frame << 12 | hpa & 4095

    return mapped
