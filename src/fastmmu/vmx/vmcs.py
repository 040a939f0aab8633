"""A VMCS region: 4 KB of memory that VMCLEAR and VMPTRLD name by its address."""

from __future__ import annotations

from fastmmu._arguments import instance, within
from fastmmu.errors import BusError, ConfigError, StateError
from fastmmu.paging.memory import PhysicalMemory

__all__ = ["REVISION", "Vmcs"]

REVISION = 0x464D0001
"""VMCS revision identifier of this processor (IA32_VMX_BASIC bits 30:0)."""

LAUNCHED, CURRENT = 1, 2  # vmx/processor.pxd


class Vmcs:
    """A VMCS region at a physical address: writes the revision identifier there, and knows the state of the region.

    It is an address wherever one is asked for, ``cpu.vmptrld(vmcs)``. Its fields are in a format of the processor:
    :meth:`Cpu.vmread` and :meth:`Cpu.vmwrite` reach those of the current VMCS.

    :param memory: :class:`fastmmu.PhysicalMemory`. :param address: a multiple of 4096; the page is cleared.
    :raises StateError: the address is not aligned. :raises BusError: the page is not in memory. :raises ConfigError:
        memory is read-only.
    """

    __slots__ = ("address", "memory")

    def __init__(self, memory: PhysicalMemory, address: int) -> None:
        instance("memory", memory, PhysicalMemory)
        address = within("address", address, 0, (1 << 52) - 1)
        if address & 0xFFF:
            raise StateError(f"a VMCS region at {address:#x}: give a multiple of 4096")
        if not memory.writable:
            raise ConfigError("a VMCS region needs writable memory; give it a copy")
        if address + 4096 > memory.nbytes:
            raise BusError(f"a VMCS region at {address:#x}: memory has {memory.nbytes:#x} bytes")
        self.memory = memory
        self.address = address
        memory.u8[address : address + 4096] = 0
        memory.u64[address >> 3] = REVISION

    def __index__(self) -> int:
        return self.address

    @property
    def revision(self) -> int:
        """What the region has for a revision identifier, bits 30:0, and the shadow-VMCS indicator, bit 31."""
        return int(self.memory.u64[self.address >> 3]) & 0xFFFFFFFF

    @property
    def launched(self) -> bool:
        """Launch state: VMLAUNCH has entered with it since the last VMCLEAR."""
        return bool(int(self.memory.u64[(self.address >> 3) + 1]) & LAUNCHED)

    @property
    def current(self) -> bool:
        """Is it the current VMCS of a processor?"""
        return bool(int(self.memory.u64[(self.address >> 3) + 1]) & CURRENT)

    def __repr__(self) -> str:
        state = "launched" if self.launched else "clear"
        return f"<Vmcs at {self.address:#x}, {state}{', current' if self.current else ''}>"
