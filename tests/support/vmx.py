"""Processors with a current VMCS, for tests of fastmmu.vmx."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastmmu
from fastmmu.vmx import LONG_MODE_GUEST, UNPAGED_GUEST, Capabilities, Cpu, Exit, ExitReason, Field, GuestEvent, Op, Vmcs

VMCS, OTHER, ROOT, APIC_PAGE, BITMAP = 0x1000, 0x2000, 0x4000, 0x8000, 0x9000
DATA = 0x10_0000


def processor(nbytes: int = 1 << 21, **options: Any) -> Cpu:
    """In VMX root operation, with a clear VMCS at VMCS that is current."""
    cpu = Cpu(fastmmu.PhysicalMemory(nbytes), **options)
    vmcs = Vmcs(cpu.memory, VMCS)
    cpu.vmclear(vmcs)
    cpu.vmptrld(vmcs)
    return cpu


def map_ept(memory: fastmmu.PhysicalMemory, gpa: int, hpa: int, rights: int = 7, root: int = ROOT) -> None:
    """A 4 KB page below 2 MB in a 4-level EPT whose four tables lie one behind the other from `root`."""
    for level in range(3):
        memory.u64[(root + 0x1000 * level) >> 3] = root + 0x1000 * (level + 1) | 7
    memory.u64[(root + 0x3000 + 8 * (gpa >> 12)) >> 3] = hpa | 0x30 | rights


def unpaged(**options: Any) -> Cpu:
    """With an empty EPT at ROOT and a guest that may be launched."""
    cpu = processor(**options)
    cpu.vmwrite_all(UNPAGED_GUEST)
    cpu.vmwrite(Field.EPTP, ROOT | 0x5E)
    return cpu


def long_mode(**options: Any) -> Cpu:
    """A 64-bit guest without EPT, whose 4-level tables from ROOT map the first 2 MB one to one, for the user too."""
    cpu = processor(**options)
    words = cpu.memory.u64
    words[ROOT >> 3] = ROOT + 0x1000 | 7
    words[(ROOT + 0x1000) >> 3] = ROOT + 0x2000 | 7
    words[(ROOT + 0x2000) >> 3] = ROOT + 0x3000 | 7
    pages = np.arange(512, dtype=np.uint64)
    words[(ROOT + 0x3000) >> 3 : (ROOT + 0x4000) >> 3] = pages << np.uint64(12) | np.uint64(7)
    cpu.vmwrite_all(LONG_MODE_GUEST)
    cpu.vmwrite(Field.GUEST_CR3, ROOT)
    return cpu


def exited(came: Exit | GuestEvent | None, reason: ExitReason) -> Exit:
    assert isinstance(came, Exit), came
    assert came.reason == reason
    return came


def launched(cpu: Cpu, fields: dict[Field, int] | None = None) -> Cpu:
    cpu.vmwrite_all(fields or {})
    assert cpu.vmlaunch() is None
    return cpu


def resumed(cpu: Cpu, fields: dict[Field, int]) -> None:
    """After an exit by CPUID."""
    exited(cpu.run(Op.EXIT, 0, ExitReason.CPUID), ExitReason.CPUID)
    cpu.vmwrite_all(fields)
    assert cpu.vmresume() is None


__all__ = [
    "APIC_PAGE",
    "BITMAP",
    "DATA",
    "OTHER",
    "ROOT",
    "VMCS",
    "Capabilities",
    "exited",
    "launched",
    "long_mode",
    "map_ept",
    "processor",
    "resumed",
    "unpaged",
]
