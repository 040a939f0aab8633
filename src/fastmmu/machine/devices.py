"""Device models in Python, behind addresses that no memory slot holds (kvm_policy.md §4.4).

    access ──► a part on each page ──► fragments of 8 bytes ──► the devices that hold them, lowest address first

KVM's emulator takes an access apart at the end of a page, and hands user space fragments of 8 bytes at most
(emulator_read_write, complete_emulated_mmio of Linux 6.1).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from fastmmu._arguments import shown, whole, within
from fastmmu._checked import checked
from fastmmu.errors import ConfigError, PolicyError, StateError, WrongTypeError
from fastmmu.exits import Action, Exit
from fastmmu.machine.policy import Mmio, Policy, _default

if TYPE_CHECKING:
    from fastmmu.machine.machine import Machine

__all__ = ["Bus", "Device"]

FRAGMENT = 8  # bytes that KVM gives user space at once


class Device:
    """What stands behind a range of guest-physical addresses: a subclass says what reads and writes do.

    size: bytes of the range. One that overrides nothing reads as all ones, as a bus does where nobody answers.

    Threads: called in the thread that runs the machine, as a :class:`Policy`.
    """

    size = 4096

    def read(self, offset: int, size: int) -> int:
        """The guest reads `size` bytes, 1 to 8, at `offset`: what it gets, below ``1 << 8 * size``."""
        return (1 << 8 * int(within("size", size, 1, 8))) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest stores `size` bytes, 1 to 8, at `offset`: the number `value`, little endian."""


class Bus(Policy):
    """A policy that gives accesses to no memory to devices::

        machine = Machine(config, guest_kernel=False, policy=Bus({0x1000_0000: MyDevice()}))

    Everything else about the exits is KVM's. An access of up to 16 bytes comes to the devices in parts, lowest address
    first: of each page, of 8 bytes, of each device. A load whose bytes are all of devices has a value
    (``machine.load(...).value``). A read-modify-write reads all of its parts, then writes them; one that moves no data
    (:meth:`Machine.access`) writes what it read, a write 0. Where no device stands nothing happens. Machines over EPT
    and shadowed ones, bare ones and replays of system traces, have devices alike.

    A fetch from a device is refused (StateError): KVM cannot fetch what it should emulate, counts a failed emulation
    and ends KVM_RUN with KVM_EXIT_INTERNAL_ERROR at CPL 0; at CPL 3 the guest gets #UD (handle_emulation_failure).

    What a device raises comes out of the instruction; done again, the instruction asks the device again. So does a
    value that does not fit what is read, or none (PolicyError).

    :param devices: guest-physical address → :class:`Device`. :raises ConfigError: two of them overlap, or one is no
        device, stands at no address of 52 bits, or reads as those of 0.1.0 did, ``read(offset)``.

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
            _check_read(device)
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

    def on_npf(self, machine: Machine, exit: Exit) -> Action:
        """Either, on AMD."""
        return self._finish(machine)

    def on_exception_nmi(self, machine: Machine, exit: Exit) -> Action:
        """Either, under shadow paging."""
        return self._finish(machine)

    def _finish(self, machine: Machine) -> Action:
        action = _default(machine)
        access = machine.mmio if action is Action.EMULATED else None
        if access is not None:
            self._carry_out(machine, access)
        return action

    def _carry_out(self, machine: Machine, access: Mmio) -> None:
        parts = list(self._parts(access.gpa, access.size or 1))
        if parts and access.access == "x":
            raise StateError(
                f"a fetch at {access.gpa:#x}, from {parts[0].name}: KVM emulates no code of a device, KVM_RUN ends in "
                "KVM_EXIT_INTERNAL_ERROR (CPL 3: #UD); put the code into memory, fastmmu.MemorySlot"
            )
        value = access.value or 0
        if "r" in access.access:
            value = sum(part.read() << 8 * part.at for part in parts)
            if sum(part.size for part in parts) == access.size <= 16:
                machine.complete_mmio(value)
        if "w" in access.access:
            for part in parts:
                part.device.write(part.offset, part.size, value >> 8 * part.at & (1 << 8 * part.size) - 1)

    def _parts(self, gpa: int, size: int) -> Iterator[_Part]:
        for fragment in range(gpa, gpa + size, FRAGMENT):
            end = min(fragment + FRAGMENT, gpa + size)
            for base, device in self.devices:
                first = max(fragment, base)
                n = min(end, base + device.size) - first
                if n > 0:
                    yield _Part(base, device, first - base, first - gpa, n)


class _Part(NamedTuple):
    """Of an access, what one device gets at once: offset in the device, offset in the access, bytes."""

    base: int
    device: Device
    offset: int
    at: int
    size: int

    @property
    def name(self) -> str:
        return f"the {type(self.device).__name__} at {self.base:#x}"

    def read(self) -> int:
        found = self.device.read(self.offset, self.size)
        try:
            value = int(whole("value", found))
        except WrongTypeError:
            value = -1
        if not 0 <= value < 1 << 8 * self.size:
            raise PolicyError(
                f"{self.name}: read({self.offset:#x}, {self.size}) returned {shown(found)}; it returns an integer of "
                f"{8 * self.size} bits, 0..{(1 << 8 * self.size) - 1:#x}"
            )
        return value


def _check_read(device: Device) -> None:
    try:
        inspect.signature(device.read).bind(0, 1)
    except TypeError:
        raise ConfigError(
            f"{type(device).__name__}: its read takes no (offset, size); devices return what the guest reads now: "
            "def read(self, offset, size): return ..."
        ) from None
    except ValueError:  # of a function in C nothing is known
        return
