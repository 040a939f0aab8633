"""Blocks that wait, in memory that goes back to the host with them.

Blocks are made in one thread and dropped in another, with more of them in between each time. From the allocator of the
C library they take ever more then, for what is free lies in pieces, in a pool for each thread.
"""

from __future__ import annotations

import dataclasses
import mmap
from typing import Any, cast

import numpy as np

__all__ = ["apart"]

_LINE = 64


def apart(block: Any) -> Any:
    """The same block, with copies of a dataclass's arrays in pages of their own."""
    if not dataclasses.is_dataclass(block) or isinstance(block, type):
        return block
    arrays = {
        field.name: array
        for field in dataclasses.fields(block)
        if isinstance(array := getattr(block, field.name), np.ndarray)
    }
    pages = mmap.mmap(-1, max(1, sum(array.nbytes + _LINE for array in arrays.values())))
    at = 0
    for name, array in arrays.items():
        copy = np.frombuffer(pages, array.dtype, array.size, at).reshape(array.shape)
        copy[...] = array
        copy.flags.writeable = False
        arrays[name] = copy
        at += -(-array.nbytes // _LINE) * _LINE
    return dataclasses.replace(cast(Any, block), **arrays)
