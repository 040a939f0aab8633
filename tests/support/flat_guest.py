"""A bare guest whose linear addresses are its guest-physical ones, and what the VMM made of it."""

from __future__ import annotations

from typing import Any

from fastmmu import Config, GuestState, Kvm, Machine, MemorySlot, Policy
from tests.support.vmm_tables import FRAME

PAGE = 0x40_0000  # a page of the guest's


def flat(config: Config, *slots: MemorySlot, policy: Policy | None = None) -> Machine:
    """Linear = guest-physical below 1 GB; the tables are pages 1 to 3."""
    machine = Machine(config, guest_kernel=False, state=GuestState(cr3=0x1000), slots=slots, policy=policy)
    words = machine.guest_memory.u64
    words[0x1000 >> 3], words[0x2000 >> 3] = 0x2063, 0x3063
    for i in range(512):
        words[(0x3000 >> 3) + i] = i << 21 | 0xE3
    return machine


def flat_vmm(vmm: type[Kvm], mmu: str, **fields: Any) -> Machine:
    """Linear = guest-physical in the first 4 MB, with PAE and global pages on, under a VMM in Python."""
    machine = Machine(
        Config(memory="64M", vmm=vmm, mmu=mmu, **fields),
        guest_kernel=False,
        state=GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46),
    )
    for address, value in {0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x83, 0x3008: 0x200083}.items():
        machine.guest_memory.u64[address >> 3] = value
    return machine


def entry(machine: Machine, gpa: int) -> int:
    """The EPT entry at which a walk for gpa ends."""
    table = machine.vmcs["eptp"] & FRAME
    for level in (4, 3, 2, 1):
        found = int(machine.memory.u64[(table >> 3) + (gpa >> 9 * level + 3 & 511)])
        if level == 1 or found & 0x80 or not found:
            break
        table = found & FRAME
    return found


def exits(machine: Machine) -> int:
    return int(machine.counters()["vm_exits"])


def counted(machine: Machine, *names: str) -> list[int]:
    counters = machine.vmm.counters()
    return [counters[name] for name in names]
