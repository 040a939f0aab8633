"""The vCPUs of one VM as if each were a processor with a local APIC: which interrupts are delivered, and when.

There is no VMM here, so this is what each way of virtualizing the APIC has to come to (apic.md §1, §2.3). Beside it
stands what an interprocessor interrupt takes where vCPUs run on physical CPUs: KVM's kicks and notifications.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .apic import BASE, EOI, ICR_HIGH, ICR_LOW, TPR, Ipi, LocalApic, targets
from .apic_msr import move_to_cr8, rdmsr, wrmsr

__all__ = ["Handler", "Processor", "Processors"]

IRQL = "irql"


@dataclass
class Handler:
    """A handler that has not returned: `tpr` is what it restores, None where it left the TPR alone."""

    vector: int
    tpr: int | None
    left: int


@dataclass
class Processor:
    """One vCPU: its APIC, RFLAGS.IF, handlers under way, interrupts delivered as (vector, clock)."""

    apic: LocalApic
    interrupts_on: bool = True
    handlers: list[Handler] = field(default_factory=list)
    delivered: list[tuple[int, int]] = field(default_factory=list)
    nested: int = 0
    cpu: int | None = None  # in guest mode there
    kicked: bool = False
    outstanding: bool = False  # ON of its posted-interrupt descriptor


@dataclass
class Processors:
    """`count` vCPUs whose guest handles interrupts as `handler` says ("eoi", "irql"), for `length` accesses each.

    The clock is the accesses of all of them; one bus clock, and one tick of the time-stamp counter, is an access.
    """

    count: int = 1
    handler: str = "eoi"
    length: int = 0
    posted: bool = False  # interrupts are posted, or the VMM puts them into IRR
    clock: int = 0
    kicks: int = 0
    notifications: int = 0
    all: list[Processor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.all = [Processor(LocalApic(i)) for i in range(self.count)]

    # ---- the host -------------------------------------------------------------------------------------------------

    def place(self, number: int, cpu: int) -> None:
        """A vCPU gets a physical CPU; who was there waits from now on. What it was sent arrives before it goes on."""
        for other in self.all:
            if other.cpu == cpu:
                other.cpu = None
        me = self.all[number]
        me.cpu, me.kicked, me.outstanding = cpu, False, False
        self.boundary(me)

    # ---- instructions, each followed by what is delivered after it ------------------------------------------------

    def access(self, number: int) -> None:
        """An access of the trace: time passes for every timer, and for the handler that makes it."""
        me = self.all[number]
        self.clock += 1
        if me.handlers:
            me.handlers[-1].left -= 1
        while me.handlers and me.handlers[-1].left == 0:
            self.returned(me)
        for each in self.all:
            each.apic.advance(1)
        self.boundary(me)

    def write(self, number: int, offset: int, value: int) -> None:
        """A write of a register."""
        me = self.all[number]
        self.send(me, me.apic.write(offset, value))
        self.boundary(me)

    def store(self, number: int, offset: int, value: int) -> None:
        """A store to the page of the APIC: nothing is there in x2APIC mode, nor while it is disabled."""
        if self.page_is_there(number):
            self.write(number, offset, value)

    def load(self, number: int, offset: int) -> int:
        """A load of 32 bits from the page; where nothing is there all of them are 1."""
        return self.all[number].apic.read(offset) if self.page_is_there(number) else 0xFFFF_FFFF

    def page_is_there(self, number: int) -> bool:
        apic = self.all[number].apic
        return apic.present and not apic.x2apic and apic.base >> 12 == BASE >> 12

    def write_msr(self, number: int, msr: int, value: int) -> None:
        """WRMSR. :raises StateError: #GP(0)."""
        me = self.all[number]
        self.send(me, wrmsr(me.apic, msr, value, tsc=self.clock))
        self.boundary(me)

    def read_msr(self, number: int, msr: int) -> int:
        """RDMSR. :raises StateError: #GP(0)."""
        return rdmsr(self.all[number].apic, msr)

    def write_cr8(self, number: int, value: int) -> None:
        """MOV to CR8. :raises StateError: #GP(0)."""
        move_to_cr8(self.all[number].apic, value)
        self.boundary(self.all[number])

    def write_icr(self, number: int, value: int) -> None:
        """An IPI by the ICR of 64 bits, or by the two of 32: ICR high takes 8 bits of the destination."""
        if self.all[number].apic.x2apic:
            self.write_msr(number, 0x830, value)
            return
        if not value >> 18 & 3:  # else the destination does not count
            self.store(number, ICR_HIGH, (value >> 32 & 0xFF) << 24)
        self.store(number, ICR_LOW, value & 0xFFFF_FFFF)

    def set_deadline(self, number: int, after: int) -> None:
        """WRMSR of IA32_TSC_DEADLINE, of a time from now; 0 disarms."""
        me = self.all[number]
        me.apic.set_deadline(self.clock + after if after else 0, self.clock)
        self.boundary(me)

    def set_interrupts(self, number: int, on: bool) -> None:
        """CLI, STI."""
        self.all[number].interrupts_on = on
        self.boundary(self.all[number])

    def interrupt(self, number: int, vector: int, *, level: bool = False) -> None:
        """A device interrupts the vCPU that runs."""
        self.all[number].apic.request(vector, level=level)
        self.boundary(self.all[number])

    # ---- interrupts -----------------------------------------------------------------------------------------------

    def send(self, me: Processor, ipi: Ipi | None) -> None:
        """What the ICR sends; SMI, NMI, INIT and start-up are not delivered."""
        if ipi is None or ipi.mode > 1:
            return
        for apic in targets([each.apic for each in self.all], ipi):
            if apic.request(ipi.vector) and apic is not me.apic:
                self.told(self.all[apic.id])

    def told(self, other: Processor) -> None:
        """Another vCPU got a request: if it is in guest mode an IPI of the host makes it look."""
        if self.posted:
            self.notifications += other.cpu is not None and not other.outstanding
            other.outstanding = True
        else:
            self.kicks += other.cpu is not None and not other.kicked
            other.kicked = other.cpu is not None

    def boundary(self, me: Processor) -> None:
        """Before the next instruction: every interrupt that can be delivered, the highest first."""
        while me.interrupts_on and (vector := me.apic.acknowledge()) is not None:
            me.delivered.append((vector, self.clock))
            me.nested += bool(me.handlers)
            me.interrupts_on = False
            tpr = me.apic.page[TPR]
            raises = self.handler == IRQL and vector & 0xF0 > tpr
            me.handlers.append(Handler(vector, tpr if raises else None, self.length))
            if raises:
                me.apic.write(TPR, vector & 0xF0)
            if self.handler == IRQL:
                me.interrupts_on = True
                self.boundary(me)
            if not self.length:
                self.returned(me)

    def returned(self, me: Processor) -> None:
        """The end of a handler: CLI, end of interrupt, the TPR as it was, IRET."""
        handler = me.handlers.pop()
        if me.apic.x2apic or self.page_is_there(me.apic.id):
            me.apic.write(EOI, 0)
            if handler.tpr is not None:
                me.apic.write(TPR, handler.tpr)
        me.interrupts_on = True

    def delivered(self) -> Sequence[list[tuple[int, int]]]:
        """Of each vCPU."""
        return [each.delivered for each in self.all]
