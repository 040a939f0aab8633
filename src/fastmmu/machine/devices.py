"""Device models in Python, behind addresses that no memory slot holds (kvm_policy.md §4.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.policy import Action, Exit, Policy, _default

if TYPE_CHECKING:
    from fastmmu.machine.machine import Machine

__all__ = ["Bus", "Device"]


class Device:
    """What stands behind a range of guest-physical addresses: a subclass says what reads and writes do.

    size: bytes of the range.

    Threads: called in the thread that runs the machine, as a :class:`Policy`.
    """

    size = 4096

    def read(self, offset: int) -> None:
        """The guest loads from, fetches from or modifies `offset`; the machine knows no registers to load into."""

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest stores the `size` low bytes of `value` at `offset`."""


class Bus(Policy):
    """A policy that gives accesses to no memory to devices::

        machine = Machine(config, guest_kernel=False, policy=Bus({0x1000_0000: MyDevice()}))

    Everything else about the exits is KVM's. Accesses where no device stands do nothing, as before.

    What a device raises comes out of the instruction; done again, the instruction asks the device again.

    :param devices: guest-physical address → :class:`Device`. :raises ConfigError: two of them overlap, or one is no
        device, or stands at no address of 52 bits.

    Threads: as of a :class:`Policy`.
    """

    @checked
    def __init__(self, devices: Mapping[int, Device]) -> None:
        for first, device in devices.items():
            if not isinstance(device, Device):
                raise ConfigError(f"{device!r} is no Device; give an object of a subclass of fastmmu.Device")
            if not isinstance(device.size, int) or device.size < 1:
                raise ConfigError(f"{device!r}: size={device.size!r} is no number of bytes, at least 1")
            if not isinstance(first, int) or not 0 <= first <= (1 << 52) - device.size:
                raise ConfigError(f"a device at {first!r} of {device.size:#x} bytes: addresses are 0..2**52 - 1")
        self.devices = sorted(devices.items(), key=lambda placed: placed[0])
        for (first, device), (second, _) in zip(self.devices, self.devices[1:], strict=False):
            if first + device.size > second:
                raise ConfigError(f"the device at {first:#x} of {device.size:#x} bytes overlaps the one at {second:#x}")

    def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
        """The first access to a page."""
        return self._finish(machine)

    def on_ept_misconfig(self, machine: Machine, exit: Exit) -> Action:
        """An access to a page that is marked."""
        return self._finish(machine)

    def on_exception_nmi(self, machine: Machine, exit: Exit) -> Action:
        """Either, under shadow paging."""
        return self._finish(machine)

    def _finish(self, machine: Machine) -> Action:
        action = _default(machine)
        if action is not Action.EMULATED or machine.mmio is None:
            return action
        gpa, stored = machine.mmio
        for base, device in self.devices:
            if base <= gpa < base + device.size:
                if stored is None:
                    device.read(gpa - base)
                else:
                    device.write(gpa - base, *stored)
        return action
