"""The local APIC: priorities, acceptance, end of interrupt, interprocessor interrupts, timer (apic.md §1).

Registers live in a page of 4096 bytes, one of 32 bits every 16 bytes, which may be the virtual-APIC page of a VMCS:
a VMM that emulates the APIC and the processor that virtualizes it then see the same state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

__all__ = [
    "EOI",
    "ICR_HIGH",
    "ICR_LOW",
    "IRR",
    "ISR",
    "PPR",
    "TMR",
    "TPR",
    "Ipi",
    "LocalApic",
    "highest",
    "processor_priority",
    "route",
]

ID, VERSION, TPR, APR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR = 0x100, 0x180, 0x200, 0x280
LVT_CMCI, ICR_LOW, ICR_HIGH, LVT_TIMER, LVT_ERROR = 0x2F0, 0x300, 0x310, 0x320, 0x370
INITIAL_COUNT, CURRENT_COUNT, DIVIDE, SELF_IPI = 0x380, 0x390, 0x3E0, 0x3F0
LVTS = (LVT_CMCI, LVT_TIMER, 0x330, 0x340, 0x350, 0x360, LVT_ERROR)
MASKED = 1 << 16
ENABLED = 1 << 8  # in SVR
BASE, BSP, EXTD, EN = 0xFEE0_0000, 1 << 8, 1 << 10, 1 << 11  # in IA32_APIC_BASE
SEND_ILLEGAL, RECEIVE_ILLEGAL, ILLEGAL_REGISTER = 1 << 5, 1 << 6, 1 << 7  # in ESR

PERIODIC, TSC_DEADLINE = 1, 2  # modes of the LVT timer; 0 one-shot
FIXED, LOWEST = 0, 1  # delivery modes of the ICR that end as an interrupt vector
WRITABLE = {  # register → bits that a write changes; TPR, EOI, ICR_LOW and the LVTs have rules of their own
    ID: 0xFF00_0000,
    LDR: 0xFF00_0000,
    DFR: 0xF000_0000,
    SVR: 0x13FF,
    ICR_HIGH: 0xFF00_0000,
    DIVIDE: 0xB,
    INITIAL_COUNT: 0xFFFF_FFFF,
}
READABLE = {ID, VERSION, TPR, APR, PPR, LDR, DFR, SVR, ESR, ICR_LOW, ICR_HIGH, INITIAL_COUNT, CURRENT_COUNT, DIVIDE}
READABLE |= set(LVTS) | {base + 16 * word for base in (ISR, TMR, IRR) for word in range(8)}


def word(page: bytearray, offset: int) -> int:
    """The 32 bits at an offset."""
    return int.from_bytes(page[offset : offset + 4], "little")


def put_word(page: bytearray, offset: int, value: int) -> None:
    page[offset : offset + 4] = (value & 0xFFFF_FFFF).to_bytes(4, "little")


def bit(page: bytearray, base: int, vector: int) -> int:
    return word(page, base + 16 * (vector >> 5)) >> (vector & 31) & 1


def put_bit(page: bytearray, base: int, vector: int, value: int) -> None:
    offset = base + 16 * (vector >> 5)
    put_word(page, offset, word(page, offset) & ~(1 << (vector & 31)) | value << (vector & 31))


def highest(page: bytearray, base: int) -> int | None:
    """Highest vector whose bit is set in IRR, ISR or TMR (`base`), None where there is none."""
    for index in range(7, -1, -1):
        if bits := word(page, base + 16 * index):
            return 32 * index + bits.bit_length() - 1
    return None


def processor_priority(tpr: int, in_service: int | None) -> int:
    """PPR of a TPR and the highest vector in service: where the classes are equal, the TPR."""
    in_service = in_service or 0
    return tpr if tpr >> 4 >= in_service >> 4 else in_service & 0xF0


@dataclass(frozen=True)
class Ipi:
    """What a write to the ICR sends. `shorthand`: 0 none, 1 self, 2 all, 3 all but self."""

    sender: int
    vector: int
    mode: int
    shorthand: int
    destination: int
    logical: bool


@dataclass
class LocalApic:
    """One local APIC: disabled, in xAPIC or in x2APIC mode by IA32_APIC_BASE, disabled by software by its SVR."""

    id: int = 0
    page: bytearray = field(default_factory=lambda: bytearray(4096), repr=False)
    ticks_left: int = 0  # of the timer, in units of the bus clock; 0: stopped
    deadline: int = 0  # IA32_TSC_DEADLINE; 0: not armed
    base: int = 0  # IA32_APIC_BASE; 0: as after reset

    def __post_init__(self) -> None:
        self.base = self.base or BASE | EN | (0 if self.id else BSP)
        put_word(self.page, ID, self.id << 24)
        put_word(self.page, VERSION, 0x0006_0015)
        put_word(self.page, DFR, 0xFFFF_FFFF)
        put_word(self.page, SVR, 0xFF)
        for lvt in LVTS:
            put_word(self.page, lvt, MASKED)

    @property
    def present(self) -> bool:
        """Not disabled as a whole. What waits in IRR stays there while it is, but not while software disables it."""
        return bool(self.base & EN)

    @property
    def enabled(self) -> bool:
        return bool(word(self.page, SVR) & ENABLED)

    @property
    def ppr(self) -> int:
        return processor_priority(self.page[TPR], highest(self.page, ISR))

    def update_ppr(self) -> int:
        put_word(self.page, PPR, self.ppr)
        return self.ppr

    def deliverable(self) -> int | None:
        """The vector that the processor gets next if it takes interrupts: IRR class above PPR class."""
        vector = highest(self.page, IRR)
        if vector is None or not self.present or vector >> 4 <= self.ppr >> 4:
            return None
        return vector

    def request(self, vector: int, *, level: bool = False) -> bool:
        """An interrupt arrives; False where it is not accepted (disabled, illegal vector)."""
        if not self.present or not self.enabled:
            return False
        if vector < 16:
            self.error(RECEIVE_ILLEGAL)
            return False
        put_bit(self.page, IRR, vector, 1)
        put_bit(self.page, TMR, vector, int(level))
        return True

    def acknowledge(self) -> int | None:
        """The processor takes the deliverable vector: it moves from IRR to ISR."""
        vector = self.deliverable()
        if vector is not None:
            put_bit(self.page, IRR, vector, 0)
            put_bit(self.page, ISR, vector, 1)
            self.update_ppr()
        return vector

    def end_of_interrupt(self) -> int | None:
        """The highest vector in service ends; its number where it was level-triggered (an I/O APIC wants to know)."""
        vector = highest(self.page, ISR)
        if vector is None:
            return None
        put_bit(self.page, ISR, vector, 0)
        self.update_ppr()
        return vector if bit(self.page, TMR, vector) else None

    def error(self, bits: int) -> None:
        put_word(self.page, ESR, word(self.page, ESR) | bits)

    def read(self, offset: int) -> int:
        """A 32-bit read of the register at a multiple of 16; reserved ones read 0 and are an error."""
        if offset not in READABLE:
            if offset != EOI:
                self.error(ILLEGAL_REGISTER)
            return 0
        if offset == PPR:
            return self.update_ppr()
        if offset == CURRENT_COUNT:
            return 0 if self.timer_mode == TSC_DEADLINE else self.count_left()
        return word(self.page, offset)

    def write(self, offset: int, value: int) -> Ipi | None:
        """A 32-bit write; what it sends where it is the ICR."""
        if offset == TPR:
            put_word(self.page, TPR, value & 0xFF)
            self.update_ppr()
        elif offset == EOI:
            self.end_of_interrupt()
        elif offset == ESR:
            put_word(self.page, ESR, 0)
        elif offset == ICR_LOW:
            return self.send(value | word(self.page, ICR_HIGH) >> 24 << 32)
        elif offset == SELF_IPI and self.x2apic:
            return self.message(value & 0xFF | 1 << 18)
        elif offset in LVTS:
            before = self.timer_mode
            put_word(self.page, offset, value & 0x7_17FF | (0 if self.enabled else MASKED))
            if TSC_DEADLINE in (before, self.timer_mode) and before != self.timer_mode:
                self.ticks_left = self.deadline = 0
                put_word(self.page, INITIAL_COUNT, 0)
        elif offset == DIVIDE:
            left, by_mode = self.count_exactly(), self.timer_mode != TSC_DEADLINE
            put_word(self.page, DIVIDE, value & WRITABLE[DIVIDE])
            if by_mode:
                self.ticks_left = ceil(left * self.divisor)
        elif offset == INITIAL_COUNT and self.timer_mode == TSC_DEADLINE:
            pass
        elif offset in WRITABLE:
            put_word(self.page, offset, value & WRITABLE[offset] | (0x0FFF_FFFF if offset == DFR else 0))
            if offset == SVR and not self.enabled:
                for lvt in LVTS:
                    put_word(self.page, lvt, word(self.page, lvt) | MASKED)
            if offset == INITIAL_COUNT:
                self.ticks_left = value * self.divisor
        else:
            self.error(ILLEGAL_REGISTER)
        return None

    def send(self, icr: int) -> Ipi | None:
        """A write of the ICR, destination in bits 63:32: 8 bits of it, in x2APIC mode 32."""
        put_word(self.page, ICR_LOW, icr & 0xFFFF_EFFF)
        return self.message(icr)

    def message(self, icr: int) -> Ipi | None:
        vector, mode = icr & 0xFF, icr >> 8 & 7
        if mode in (FIXED, LOWEST) and vector < 16:
            self.error(SEND_ILLEGAL)
            return None
        return Ipi(self.id, vector, mode, icr >> 18 & 3, icr >> 32, bool(icr >> 11 & 1))

    @property
    def x2apic(self) -> bool:
        """In x2APIC mode: the ID register has 32 bits, the LDR is cluster and bit made of the id."""
        return self.base & (EN | EXTD) == EN | EXTD

    @x2apic.setter
    def x2apic(self, on: bool) -> None:
        self.set_base(self.base & ~EXTD | EN | (EXTD if on else 0))

    def set_base(self, value: int) -> None:
        """IA32_APIC_BASE takes a value: the id gets as wide as the mode has it, x2APIC mode makes the LDR of it."""
        before, self.base = self.base, value
        if (before ^ value) & (EN | EXTD):
            put_word(self.page, ID, self.id if self.x2apic else self.id << 24)
        if (before ^ value) & EXTD:
            put_word(self.page, LDR, (self.id // 16) << 16 | 1 << self.id % 16 if self.x2apic else 0)

    # ---- timer ---------------------------------------------------------------------------------------------------

    @property
    def timer_mode(self) -> int:
        return word(self.page, LVT_TIMER) >> 17 & 3

    @property
    def divisor(self) -> int:
        divide = word(self.page, DIVIDE)
        return 1 << ((divide & 3 | divide >> 1 & 4) + 1 & 7)

    def count_exactly(self) -> Fraction:
        return Fraction(self.ticks_left, self.divisor)

    def count_left(self) -> int:
        return ceil(self.count_exactly())

    def set_deadline(self, value: int, tsc: int) -> bool:
        """WRMSR of IA32_TSC_DEADLINE at a time; does the timer run out at once?"""
        if self.timer_mode != TSC_DEADLINE or not self.present:
            return False
        due = 0 < value <= tsc
        self.deadline = value if value > tsc else 0
        self.ticks_left = max(value - tsc, 0)
        if due:
            self.expired()
        return due

    def advance(self, ticks: int) -> int:
        """Let bus clocks pass; how often the timer ran out. Its vector is asked for once, unless it is masked."""
        period, fired = word(self.page, INITIAL_COUNT) * self.divisor, 0
        if not self.ticks_left:
            return 0
        if ticks < self.ticks_left:
            self.ticks_left -= ticks
            return 0
        fired, ticks, self.ticks_left, self.deadline = 1, ticks - self.ticks_left, 0, 0
        if self.timer_mode == PERIODIC and period:
            fired += ticks // period
            self.ticks_left = period - ticks % period
        self.expired()
        return fired

    def expired(self) -> None:
        lvt = word(self.page, LVT_TIMER)
        if not lvt & MASKED:
            self.request(lvt & 0xFF)


def addressed(apic: LocalApic, ipi: Ipi) -> bool:
    """Does the interprocessor interrupt go to this APIC, by the mode that it is in? The sender's does not count.

    In xAPIC mode FFH is all of them, and a logical destination is 8 bits in flat or cluster model; in x2APIC mode
    FFFFFFFFH is, and a logical destination names a cluster (bits 31:16) and members of that.
    """
    if not apic.present:
        return False
    to = ipi.destination
    if ipi.shorthand:
        return ipi.shorthand == 2 or (apic.id == ipi.sender) == (ipi.shorthand == 1)
    if to == (0xFFFF_FFFF if apic.x2apic else 0xFF):
        return True
    if not ipi.logical:
        return to == (apic.id if apic.x2apic else word(apic.page, ID) >> 24)
    if apic.x2apic:
        cluster, members = divmod(word(apic.page, LDR), 1 << 16)
        return to >> 16 == cluster and bool(to & members)
    mine = word(apic.page, LDR) >> 24
    match word(apic.page, DFR) >> 28:
        case 0xF:
            return bool(mine & to)
        case 0:
            return to >> 4 == mine >> 4 and bool(mine & to & 0xF)
    return False


def targets(apics: Sequence[LocalApic], ipi: Ipi) -> Iterator[LocalApic]:
    """The APICs that take it; of "lowest priority" the one with the lowest PPR, the first among equals."""
    found = [apic for apic in apics if addressed(apic, ipi) and (ipi.mode != LOWEST or apic.enabled)]
    if ipi.mode == LOWEST and found:
        found = [min(found, key=lambda apic: apic.ppr)]
    yield from found


def route(apics: Sequence[LocalApic], ipi: Ipi) -> list[int]:
    """Deliver an interprocessor interrupt of a vector; ids of the APICs that accepted it."""
    if ipi.mode not in (FIXED, LOWEST):
        return []
    return [apic.id for apic in targets(apics, ipi) if apic.request(ipi.vector)]
