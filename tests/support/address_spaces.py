"""Address spaces for tests of enumeration: scenes as the kernels take them, and a few that are built to hurt."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from fastmmu import Eptp, GuestState, Npt, PhysicalMemory
from fastmmu import reference as ref
from tests.conformance.kernel import kernel_eptp, kernel_state
from tests.support.random_scenes import MEMORY, Scene

__all__ = ["Space", "space_of", "tables"]

Space = tuple[PhysicalMemory, GuestState, Eptp | Npt | None]


def space_of(scene: Scene) -> Space:
    """A scene for the kernels. Enumeration writes nothing: neither a log nor sub-page permissions have a say."""
    memory = PhysicalMemory(MEMORY)
    for hpa, value in scene.mem.items():
        if hpa < MEMORY:
            memory.u64[hpa >> 3] = value
    ept = scene.ept
    if isinstance(ept, ref.Ept):
        ept = dataclasses.replace(ept, pml=None, spptp=None)
    return memory, kernel_state(scene.state), kernel_eptp(ept) if ept else None


def tables(nbytes: int, *filled: tuple[int, npt.ArrayLike]) -> PhysicalMemory:
    """Memory in which each table (its frame) has these entries; one entry fills the table."""
    memory = PhysicalMemory(nbytes)
    for frame, entries in filled:
        memory.u64[frame << 9 : (frame + 1) << 9] = np.asarray(entries, np.uint64)
    return memory
