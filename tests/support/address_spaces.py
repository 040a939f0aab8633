"""Address spaces for tests of enumeration: scenes as the kernels take them, and a few that are built to hurt."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from fastmmu import Eptp, GuestState, PhysicalMemory
from tests.conformance.kernel import kernel_eptp, kernel_state
from tests.support.random_scenes import MEMORY, Scene

__all__ = ["Space", "space_of", "tables"]

Space = tuple[PhysicalMemory, GuestState, Eptp | None]


def space_of(scene: Scene) -> Space:
    """A scene for the kernels. Enumeration writes nothing: neither a log nor sub-page permissions have a say."""
    memory = PhysicalMemory(MEMORY)
    for hpa, value in scene.mem.items():
        if hpa < MEMORY:
            memory.u64[hpa >> 3] = value
    eptp = kernel_eptp(dataclasses.replace(scene.ept, pml=None, spptp=None)) if scene.ept else None
    return memory, kernel_state(scene.state), eptp


def tables(nbytes: int, *filled: tuple[int, npt.ArrayLike]) -> PhysicalMemory:
    """Memory in which each table (its frame) has these entries; one entry fills the table."""
    memory = PhysicalMemory(nbytes)
    for frame, entries in filled:
        memory.u64[frame << 9 : (frame + 1) << 9] = np.asarray(entries, np.uint64)
    return memory
