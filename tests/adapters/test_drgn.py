"""drgn reads physical and linear addresses of an image, and of a guest below an EPT."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmu import AddressSpace, GuestState, PhysicalMemory
from fastmmu.adapters.drgn import add_memory
from fastmmu.space import guest_memory

drgn = pytest.importorskip("drgn", reason="skipped: drgn is not installed")


def test_a_guest_inside_its_host() -> None:
    """The guest's page 1..4 are its tables, 7 is data; the EPT has them at 1 MB of the host."""
    host = PhysicalMemory(4 << 20)
    for level in range(1, 4):
        host.write64(level << 12, (level + 1) << 12 | 7)
    host.u64[4 << 9 : (4 << 9) + 16] = (np.arange(16) << 12) + (1 << 20) | 0x37
    for level, entry in ((1, 0x2007), (2, 0x3007), (3, 0x4007), (4, 0x7007)):
        host.write64((1 << 20) + (level << 12), entry)
    host.u8[0x10_7000:0x10_8000] = np.arange(4096, dtype=np.uint16).view(np.uint8)[:4096]
    space = AddressSpace(host, GuestState(cr3=0x1000), 0x101E)
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    add_memory(program, guest_memory(host, 0x101E), space)
    assert program.read(0x10, 64) == host.read(0x10_7010, 64)
    assert program.read(0x7010, 64, True) == host.read(0x10_7010, 64)
    assert program.read_u64(0x1000, True) == 0x2007
    for address, physical in ((0xFF8, False), (0x1000, False), (0x1_0000, True)):
        with pytest.raises(drgn.FaultError):
            program.read(address, 16, physical)
