"""A guest in VMX non-root operation until its VM exit: accesses and instructions, and which of them exit (vmx.md §6).

Nothing is cached: each access walks the tables as they stand. Time, interrupts and the APIC are those of `vapic`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...exits import ExitReason
from ...ops import GuestOp, Op
from ..paging.ept import Ept
from ..paging.outcome import Bus, EptMisconfig, EptViolation, GeneralProtection, Mapped, PageFault
from ..paging.state import State
from ..paging.walk import walk
from .vmx import Processor

__all__ = ["Done", "Fault", "Guest", "Left"]

SECONDARY, EPT, UNRESTRICTED = 1 << 31, 1 << 1, 1 << 7
INVLPG_EXITING, CR3_LOAD, CR3_STORE = 1 << 9, 1 << 15, 1 << 16
CONTROLLED = {  # exit reason: field and bit of the control that makes the instruction exit
    ExitReason.HLT: (0x4002, 7),
    ExitReason.MWAIT: (0x4002, 10),
    ExitReason.RDTSC: (0x4002, 12),
    ExitReason.RDTSCP: (0x4002, 12),
    ExitReason.DR_ACCESS: (0x4002, 23),
    ExitReason.IO_INSTRUCTION: (0x4002, 24),
    ExitReason.MONITOR: (0x4002, 29),
    ExitReason.PAUSE: (0x4002, 30),
    ExitReason.GDTR_IDTR: (0x401E, 2),
    ExitReason.LDTR_TR: (0x401E, 2),
    ExitReason.WBINVD: (0x401E, 6),
    ExitReason.RDRAND: (0x401E, 11),
    ExitReason.RDSEED: (0x401E, 16),
}
PRIVILEGED = {ExitReason.HLT, ExitReason.INVD, ExitReason.WBINVD, ExitReason.DR_ACCESS, ExitReason.XSETBV}
ACCESSES = {Op.READ: "r", Op.WRITE: "w", Op.MODIFY: "rw", Op.FETCH: "x"}


@dataclass(frozen=True)
class Done:
    """The operation is done; `value` is what it read of a control register."""

    value: int | None = None


@dataclass(frozen=True)
class Left:
    """VM exit; the operation is not done."""

    reason: ExitReason
    qualification: int = 0
    gpa: int = 0
    gla: int = 0
    interruption_info: int = 0
    error_code: int = 0


@dataclass(frozen=True)
class Fault:
    """An exception for the guest's IDT; the operation is not done."""

    vector: int
    error_code: int | None
    cr2: int | None = None


@dataclass
class Guest:
    """What a VM entry with the current VMCS of `of` leaves to run: a guest in long mode, or one that does not page."""

    of: Processor

    def __post_init__(self) -> None:
        get = self.of.get
        self.long = bool(get(0x400C + 6) >> 9 & 1)  # VM-entry controls: IA-32e mode guest
        self.cr0, self.cr3, self.cr4 = get(0x6800), get(0x6802), get(0x6804)
        self.efer = (get(0x2806) & ~0x500) | (0x500 if self.long else 0)
        self.ac, self.cpl = get(0x6820) >> 18 & 1, get(0x4818) >> 5 & 3
        self.second = get(0x401E) if get(0x4002) & SECONDARY else 0

    @property
    def state(self) -> State:
        return State(
            cr0=self.cr0,
            cr3=self.cr3,
            cr4=self.cr4,
            efer=self.efer,
            cpl=self.cpl,
            ac=self.ac,
            maxphyaddr=self.of.caps.maxphyaddr,
        )

    def step(self, op: int, size: int, addr: int) -> Done | Left | Fault | Bus:
        if op in ACCESSES:
            return self.access(Op(op), size or 1, addr)
        if op == GuestOp.CPL:
            self.cpl = addr & 3
            return Done()
        if op == Op.EXIT:
            return self.instruction(ExitReason(addr))
        if self.cpl:
            return self.exception(13, 0)
        get = self.of.get
        if op == Op.INVLPG:
            return Left(ExitReason.INVLPG, addr) if get(0x4002) & INVLPG_EXITING else Done()
        if op == GuestOp.MOV_TO_CR3:
            return self.mov_to_cr3(addr)
        if op == GuestOp.MOV_FROM_CR3:
            return Left(ExitReason.CR_ACCESS, 0x13) if get(0x4002) & CR3_STORE else Done(self.cr3)
        number, real = (0, self.cr0) if op in (GuestOp.MOV_TO_CR0, GuestOp.MOV_FROM_CR0) else (4, self.cr4)
        mask, shadow = get(0x6000 + number // 2), get(0x6004 + number // 2)
        if op in (GuestOp.MOV_FROM_CR0, GuestOp.MOV_FROM_CR4):
            return Done(real & ~mask | shadow & mask)
        assert op in (GuestOp.MOV_TO_CR0, GuestOp.MOV_TO_CR4), op
        if (addr ^ shadow) & mask:
            return Left(ExitReason.CR_ACCESS, number)
        return self.mov_to(number, real & mask | addr & ~mask)

    def access(self, op: Op, size: int, la: int) -> Done | Left | Fault | Bus:
        """Each page that it touches, in turn."""
        ept = None
        if self.second & EPT:
            ept = Ept(eptp=self.of.get(0x201A), maxphyaddr=self.of.caps.maxphyaddr)
        pages = [la] if (la & 0xFFF) + size <= 0x1000 else [la, (la | 0xFFF) + 1]
        if not self.long:
            pages = [at & 0xFFFF_FFFF for at in pages]
        for at in pages:
            outcome = walk(self.of.mem, self.state, at, ACCESSES[op], ept=ept)
            match outcome:
                case PageFault(error_code=code):
                    return self.page_fault(at, code)
                case GeneralProtection():
                    return self.exception(13, 0)
                case EptViolation(qualification=qualification, gpa=gpa):
                    return Left(ExitReason.EPT_VIOLATION, qualification, gpa, at)
                case EptMisconfig(gpa=gpa):
                    return Left(ExitReason.EPT_MISCONFIG, 0, gpa)
                case Bus():
                    return outcome
                case _:
                    assert isinstance(outcome, Mapped)
        return Done()

    def page_fault(self, la: int, code: int) -> Left | Fault:
        mask, match, bit = self.of.get(0x4006), self.of.get(0x4008), self.of.get(0x4004) >> 14 & 1
        if bit == (code & mask == match):
            return Left(ExitReason.EXCEPTION_NMI, la, interruption_info=0x80000B0E, error_code=code)
        return Fault(14, code, la)

    def exception(self, vector: int, code: int) -> Left | Fault:
        if self.of.get(0x4004) >> vector & 1:
            return Left(ExitReason.EXCEPTION_NMI, interruption_info=0x80000B00 | vector, error_code=code)
        return Fault(vector, code)

    def instruction(self, reason: ExitReason) -> Done | Left | Fault:
        """One of which only the exit matters; #GP by the CPL comes before it."""
        if reason in PRIVILEGED and self.cpl:
            return self.exception(13, 0)
        if reason in CONTROLLED:
            field, bit = CONTROLLED[reason]
            word = self.second if field == 0x401E else self.of.get(field)
            if not word >> bit & 1:
                return Done()
        return Left(reason)

    def mov_to_cr3(self, value: int) -> Done | Left | Fault:
        """Exits before the operand is checked; the whole operand is compared with the target values."""
        targets = [self.of.get(0x6008 + 2 * i) for i in range(self.of.get(0x400A))]
        if self.of.get(0x4002) & CR3_LOAD and value not in targets:
            return Left(ExitReason.CR_ACCESS, 3)
        if value >> (self.of.caps.maxphyaddr if self.long else 32):
            return self.exception(13, 0)
        self.cr3 = value
        return Done()

    def mov_to(self, number: int, value: int) -> Done | Left | Fault:
        """CR0 or CR4 gets the value, which changes no paging mode here, unless VMX operation forbids a bit."""
        must, may = self.of.caps.cr0 if number == 0 else self.of.caps.cr4
        if number == 0 and self.second & UNRESTRICTED:
            must &= ~0x80000001
        if must & ~value or value & ~may:
            return self.exception(13, 0)
        if number == 0:
            self.cr0 = value
        else:
            self.cr4 = value
        return Done()
