"""APIC virtualization: TPR shadow, APIC-access page, virtual-interrupt delivery, x2APIC MSRs, posted interrupts.

Rules: apic.md §3, §4, §6, §7. Every operation ends in an :class:`Outcome`; the virtual-APIC page is changed in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fastmmu.errors import StateError
from fastmmu.exits import ExitReason

from .apic import IRR, ISR, PPR, TPR, highest, processor_priority, put_bit, put_word, word

__all__ = ["Done", "Exit", "Fault", "NotVirtualized", "Outcome", "PostedDescriptor", "VirtualApic"]

REGISTERS_READ = {0x20, 0x30, 0x80, 0xB0, 0xD0, 0xE0, 0xF0, 0x280, 0x300, 0x310, 0x380, 0x3E0}
REGISTERS_READ |= set(range(0x100, 0x280, 0x10)) | set(range(0x320, 0x380, 0x10))
REGISTERS_WRITTEN = {0x20, 0x80, 0xB0, 0xD0, 0xE0, 0xF0, 0x280, 0x300, 0x310, 0x380, 0x3E0}
REGISTERS_WRITTEN |= set(range(0x320, 0x380, 0x10))
LINEAR_READ, LINEAR_WRITE, LINEAR_FETCH, LINEAR_EVENT, PHYSICAL_EVENT, PHYSICAL = 0, 1, 2, 3, 10, 15
X2_TPR, X2_EOI, X2_SELF_IPI = 0x808, 0x80B, 0x83F


@dataclass(frozen=True)
class Done:
    """The operation completed; `data` is what it read."""

    data: int | None = None


@dataclass(frozen=True)
class Exit:
    """A VM exit; `trap`: after the operation, which has taken effect."""

    reason: ExitReason
    qualification: int = 0
    trap: bool = False


@dataclass(frozen=True)
class Fault:
    """An exception of the guest: #GP(0)."""

    vector: int = 13
    error_code: int = 0


@dataclass(frozen=True)
class NotVirtualized:
    """The operation goes on to ordinary memory, to the physical APIC or its MSRs."""


Outcome = Done | Exit | Fault | NotVirtualized


@dataclass
class PostedDescriptor:
    """A posted-interrupt descriptor: requests (256 bits), outstanding notification, suppressed notification."""

    requests: int = 0
    on: bool = False
    sn: bool = False

    def post(self, vector: int) -> bool:
        """Post an interrupt; must the sender notify the processor now?"""
        self.requests |= 1 << vector
        notify = not self.on and not self.sn
        self.on = self.on or notify
        return notify


@dataclass
class VirtualApic:
    """Controls of the VMCS that concern the APIC, and the state that the processor keeps beside the page."""

    tpr_shadow: bool = True
    virtualize_accesses: bool = False
    x2apic: bool = False
    register_virtualization: bool = False
    interrupt_delivery: bool = False
    interrupt_window_exiting: bool = False
    cr8_load_exiting: bool = False
    cr8_store_exiting: bool = False
    threshold: int = 0
    eoi_exit_bitmap: int = 0
    rvi: int = 0
    svi: int = 0
    vppr: int = 0
    pending: bool = False
    page: bytearray = field(default_factory=lambda: bytearray(4096), repr=False)

    # ---- what follows a write (apic.md §3, §6) -------------------------------------------------------------------

    def update_vppr(self) -> None:
        self.vppr = processor_priority(self.page[TPR], self.svi)
        put_word(self.page, PPR, self.vppr)

    def evaluate(self) -> None:
        self.pending = not self.interrupt_window_exiting and self.rvi >> 4 > self.vppr >> 4

    def tpr_changed(self) -> Outcome:
        """TPR virtualization."""
        if self.interrupt_delivery:
            self.update_vppr()
            self.evaluate()
            return Done()
        if self.page[TPR] >> 4 < self.threshold & 15:
            return Exit(ExitReason.TPR_BELOW_THRESHOLD, trap=True)
        return Done()

    def end_of_interrupt(self) -> Outcome:
        """EOI virtualization."""
        vector = self.svi
        put_bit(self.page, ISR, vector, 0)
        self.svi = highest(self.page, ISR) or 0
        self.update_vppr()
        if self.eoi_exit_bitmap >> vector & 1:
            return Exit(ExitReason.VIRTUALIZED_EOI, vector, trap=True)
        self.evaluate()
        return Done()

    def self_ipi(self, vector: int) -> Outcome:
        """Self-IPI virtualization."""
        put_bit(self.page, IRR, vector, 1)
        self.rvi = max(self.rvi, vector)
        self.evaluate()
        return Done()

    def deliver(self) -> int:
        """Deliver the virtual interrupt that is requested; its vector."""
        if not self.rvi:
            raise StateError("no virtual interrupt is requested (rvi=0); post one before deliver()")
        vector = self.rvi
        put_bit(self.page, ISR, vector, 1)
        self.svi = vector
        self.vppr = vector & 0xF0
        put_word(self.page, PPR, self.vppr)
        put_bit(self.page, IRR, vector, 0)
        self.rvi = highest(self.page, IRR) or 0
        self.pending = False
        return vector

    def entered(self) -> bool:
        """VM entry has loaded the state; does a TPR-below-threshold exit follow at once (vmx.md §4.3)?"""
        self.pending = False
        if self.interrupt_delivery:
            self.update_vppr()
            self.evaluate()
            return False
        return self.tpr_shadow and self.virtualize_accesses and self.page[TPR] >> 4 < self.threshold & 15

    def take_posted(self, descriptor: PostedDescriptor) -> None:
        """The notification vector arrived in non-root operation: the requests move into IRR, without a VM exit."""
        requests, descriptor.requests, descriptor.on = descriptor.requests, 0, False
        for vector in range(256):
            if requests >> vector & 1:
                put_bit(self.page, IRR, vector, 1)
        self.rvi = max(self.rvi, requests.bit_length() - 1)
        self.evaluate()

    # ---- MOV to and from CR8 -------------------------------------------------------------------------------------

    def read_cr8(self, register: int = 0) -> Outcome:
        if self.cr8_store_exiting:
            return Exit(ExitReason.CR_ACCESS, 8 | 1 << 4 | register << 8)
        if not self.tpr_shadow:
            return NotVirtualized()
        return Done(self.page[TPR] >> 4)

    def write_cr8(self, value: int, register: int = 0) -> Outcome:
        if self.cr8_load_exiting:
            return Exit(ExitReason.CR_ACCESS, 8 | register << 8)
        if value >> 4:
            return Fault()
        if not self.tpr_shadow:
            return NotVirtualized()
        put_word(self.page, TPR, value << 4)
        return self.tpr_changed()

    # ---- the APIC-access page ------------------------------------------------------------------------------------

    def virtualizes(self, offset: int, size: int, registers: set[int]) -> bool:
        """Do the conditions that reads and writes share hold, and is the register one of `registers`?"""
        inside = offset & 15 < 4 and (offset & 15) + size <= 4
        return self.tpr_shadow and size <= 4 and inside and offset & ~15 in registers

    def read(self, offset: int, size: int, *, event: bool = False) -> Outcome:
        """A data read by linear address; `event`: during event delivery."""
        if not self.virtualize_accesses:
            return NotVirtualized()
        if self.register_virtualization:
            virtualized = self.virtualizes(offset, size, REGISTERS_READ)
        else:
            virtualized = self.virtualizes(offset, size, {TPR}) and offset == TPR
        if not virtualized:
            return self.access_exit(offset, LINEAR_EVENT if event else LINEAR_READ)
        return Done(int.from_bytes(self.page[offset : offset + size], "little"))

    def write(self, offset: int, size: int, value: int, *, event: bool = False) -> Outcome:
        """A data write by linear address."""
        if not self.virtualize_accesses:
            return NotVirtualized()
        if self.register_virtualization:
            virtualized = self.virtualizes(offset, size, REGISTERS_WRITTEN)
        else:
            exact = {TPR, 0xB0, 0x300} if self.interrupt_delivery else {TPR}
            virtualized = self.virtualizes(offset, size, exact) and offset in exact
        if not virtualized:
            return self.access_exit(offset, LINEAR_EVENT if event else LINEAR_WRITE)
        self.page[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        return self.written(offset)

    def modify(self, offset: int, size: int, value: int) -> Outcome:
        """A read-modify-write that stores `value`; where the read is not virtualized it exits as a write does."""
        first = self.read(offset, size)
        if not isinstance(first, Done):
            return first if isinstance(first, NotVirtualized) else self.access_exit(offset, LINEAR_WRITE)
        second = self.write(offset, size, value)
        return first if isinstance(second, Done) else second

    def fetch(self, offset: int) -> Outcome:
        if not self.virtualize_accesses:
            return NotVirtualized()
        return self.access_exit(offset, LINEAR_FETCH)

    def physical(self, offset: int, *, event: bool = False) -> Outcome:
        """An access by guest-physical address, such as that of a page walk: never virtualized."""
        if not self.virtualize_accesses:
            return NotVirtualized()
        return self.access_exit(offset, PHYSICAL_EVENT if event else PHYSICAL)

    def access_exit(self, offset: int, kind: int) -> Exit:
        return Exit(ExitReason.APIC_ACCESS, offset & 0xFFF | kind << 12)

    def written(self, offset: int) -> Outcome:
        """APIC-write emulation, after the instruction."""
        if offset == TPR:
            put_word(self.page, TPR, self.page[TPR])
            return self.tpr_changed()
        if offset == 0xB0 and self.interrupt_delivery:
            put_word(self.page, 0xB0, 0)
            return self.end_of_interrupt()
        if offset == 0x300 and self.interrupt_delivery:
            icr = word(self.page, 0x300)
            if not icr & 0xFFF3_B700 and icr >> 18 & 3 == 1 and icr >> 4 & 15:
                return self.self_ipi(icr & 0xFF)
        if offset & ~3 == 0x310:
            put_word(self.page, 0x310, word(self.page, 0x310) & 0xFF00_0000)
            return Done()
        return Exit(ExitReason.APIC_WRITE, offset, trap=True)

    # ---- x2APIC MSRs (those that the MSR bitmap lets through) ----------------------------------------------------

    def rdmsr(self, msr: int) -> Outcome:
        offset = (msr & 0xFF) << 4
        if not self.x2apic or msr >> 8 != 8 or not (self.register_virtualization or msr == X2_TPR):
            return NotVirtualized()
        return Done(int.from_bytes(self.page[offset : offset + 8], "little"))

    def wrmsr(self, msr: int, value: int) -> Outcome:
        offset = (msr & 0xFF) << 4
        if not self.x2apic or msr not in ((X2_TPR, X2_EOI, X2_SELF_IPI) if self.interrupt_delivery else (X2_TPR,)):
            return NotVirtualized()
        if value >> (0 if msr == X2_EOI else 8):
            return Fault()
        self.page[offset : offset + 8] = value.to_bytes(8, "little")
        if msr == X2_TPR:
            return self.tpr_changed()
        if msr == X2_EOI:
            return self.end_of_interrupt()
        return self.self_ipi(value) if value >> 4 else Exit(ExitReason.APIC_WRITE, offset, trap=True)
