"""A bare guest whose linear addresses are its guest-physical ones below 1 GB, and a device that remembers."""

from __future__ import annotations

from typing import Any

from fastmmu import Bus, Config, Device, GuestState, Machine, MemorySlot

LINUX = Config(memory="64M", kvm="6.1", vpid=True)
DEVICE = 0x1000_0000  # guest-physical, and linear


class Recorder(Device):
    """Remembers what it was asked; byte `offset` of it is `offset + 1`."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.asked.append(("read", offset, size))
        return pattern(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.asked.append(("write", offset, size, value))


def pattern(offset: int, size: int) -> int:
    return int.from_bytes(bytes((offset + i + 1) & 0xFF for i in range(size)), "little")


def flat(
    config: Config, *, policy: Bus | None = None, slots: tuple[MemorySlot, ...] = (), **registers: object
) -> Machine:
    """Linear = guest-physical below 1 GB, in 2 MB pages; PAT entry 1 (PWT) is write-combining for the second half."""
    given: dict[str, Any] = {"cr0": 0x8001_0033, "maxphyaddr": 46, **registers}
    state = GuestState(cr3=0x1000, cr4=0x20, efer=0x500, pat=0x0007_0406_0007_0106, **given)
    machine = Machine(config, guest_kernel=False, state=state, policy=policy, slots=slots)
    words = machine.guest_memory.u64
    words[0x1000 >> 3], words[0x2000 >> 3] = 0x2003, 0x3003
    for i in range(512):
        words[(0x3000 >> 3) + i] = i << 21 | 0xE3 | (8 if i >= 256 else 0)
    return machine
