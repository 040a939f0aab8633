"""Address spaces for tests of enumeration: scenes as the kernels take them, and a few that are built to hurt."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import fastmmu
from fastmmu import Eptp, GuestState, PhysicalMemory
from fastmmu import reference as ref
from tests.support.random_scenes import MEMORY, Scene

__all__ = ["Space", "eptp_of", "memory_of", "state_of", "tables"]

Space = tuple[PhysicalMemory, GuestState, Eptp | None]


def memory_of(scene: Scene) -> PhysicalMemory:
    memory = PhysicalMemory(MEMORY)
    for hpa, value in scene.mem.items():
        if hpa < MEMORY:
            memory.u64[hpa >> 3] = value
    return memory


def state_of(state: ref.State) -> GuestState:
    """The same registers, for the kernels."""
    names = ("cr0", "cr3", "cr4", "efer", "cpl", "ac", "pkru", "pkrs", "pat", "maxphyaddr", "upper_a")
    registers = {name: getattr(state, name) for name in names}
    registers["efer"] |= state.efer >> 2 & 0x100  # LME where LMA is set
    mtrrs = fastmmu.Mtrrs(state.mtrrs.def_type, state.mtrrs.fixed, state.mtrrs.variable)
    return GuestState(
        **registers,
        implicit=bool(state.implicit),
        page1gb=bool(state.gb_pages),
        pse36=state.psebits,
        pdptes=state.pdpte if state.mode is ref.Mode.PAE else None,
        mtrrs=mtrrs,
    )


def eptp_of(ept: ref.Ept | None) -> Eptp | None:
    if ept is None:
        return None
    return Eptp(
        ept.eptp,
        maxphyaddr=ept.maxphyaddr,
        execute_only=bool(ept.caps & ref.EptCap.EXECUTE_ONLY),
        mbec=bool(ept.mbec),
        page1gb=bool(ept.caps & ref.EptCap.PAGE_1G),
        advanced_info=bool(ept.caps & ref.EptCap.ADVANCED_INFO),
        ad_before_final=ept.guest_ad_before_final_ept,
        guest_ad_checked=ept.guest_ad_checked,
    )


def tables(nbytes: int, *filled: tuple[int, npt.ArrayLike]) -> PhysicalMemory:
    """Memory in which each table (its frame) has these entries; one entry fills the table."""
    memory = PhysicalMemory(nbytes)
    for frame, entries in filled:
        memory.u64[frame << 9 : (frame + 1) << 9] = np.asarray(entries, np.uint64)
    return memory
