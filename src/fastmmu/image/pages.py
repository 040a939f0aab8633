"""Memory out of a few pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.errors import ConfigError, OutOfMemoryError
from fastmmu.paging.memory import PhysicalMemory

__all__ = ["PAGE", "from_pages"]

PAGE = 4096
BLOCK = 1 << 21  # bytes of a huge page
_DENSE = 384  # of the 512 pages of a block
_MOST = 1000  # ranges asked for: each is an entry in the host's list of mappings, which has room for 65,530


@checked
def from_pages(pfn: npt.ArrayLike, pages: npt.ArrayLike, nbytes: int | None = None) -> PhysicalMemory:
    """Memory in which some pages are given and all others are zero; those take no memory of the host.

    :param pfn: page frame numbers, integers[n], each once, in any order. :param pages: their contents, uint8[n, 4096];
        they are copied. :param nbytes: size of the memory; None: up to the end of the last page.
    :raises ConfigError: arrays of other shapes or types, a frame given twice or outside memory.
    :raises OutOfMemoryError: the operating system refuses the address space.
    """
    try:
        frames, contents = np.asarray(pfn), np.asarray(pages)
    except MemoryError as error:
        raise OutOfMemoryError("no memory for pfn and pages as arrays; give arrays") from error
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"pfn and pages must be arrays: {error}") from error
    if frames.ndim != 1 or frames.dtype.kind not in "iu":
        raise ConfigError(f"pfn must be integers[n], not {frames.dtype}{list(frames.shape)}")
    if contents.dtype != np.uint8 or contents.shape != (len(frames), PAGE):
        raise ConfigError(f"pages must be uint8[{len(frames)}, {PAGE}], not {contents.dtype}{list(contents.shape)}")
    if not len(frames) and nbytes is None:
        raise ConfigError("no pages and no nbytes: say how large memory is")
    first, last = (int(frames.min()), int(frames.max())) if len(frames) else (0, -1)
    size = (last + 1) * PAGE if nbytes is None else nbytes
    if first < 0 or (last + 1) * PAGE > size:
        raise ConfigError(f"page frame {first if first < 0 else last:#x} lies outside memory of {size:#x} bytes")
    numbers, counts = np.unique(frames, return_counts=True)
    if len(numbers) < len(frames):
        raise ConfigError(f"page frame {int(numbers[counts > 1][0]):#x} is given more than once")
    memory = PhysicalMemory(size)
    for start, stop in _dense(numbers):
        memory.advise_huge_pages(start * BLOCK, stop * BLOCK)
    memory.u8[: size // PAGE * PAGE].reshape(-1, PAGE)[frames] = contents
    return memory


def _dense(frames: npt.NDArray[np.integer[Any]]) -> list[tuple[int, int]]:
    """Ranges of blocks of 2 MB that are nearly full, the longest ones; frames: ascending."""
    blocks, pages = np.unique(frames >> 9, return_counts=True)
    full = blocks[pages >= _DENSE].astype(np.int64)
    if not len(full):
        return []
    first = np.flatnonzero(np.diff(full, prepend=full[0] - 2) > 1)
    behind = np.append(first[1:], len(full)) - 1
    ranges = sorted(zip(full[first].tolist(), (full[behind] + 1).tolist(), strict=True), key=lambda r: r[0] - r[1])
    return ranges[:_MOST]
