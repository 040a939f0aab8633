"""Operations of a trace event: what the program, or the system under it, did.

An event is (op, size, addr). Accesses are the codes below 16 and use `addr` as a linear address and `size`
in bytes (0 is taken as 1); the system events, on which the schemes differ, use `addr` as said beside each.
"""

from __future__ import annotations

from typing import Literal

from fastmmu.errors import Code

__all__ = ["LAST_ACCESS", "AccessName", "GuestOp", "Op", "RecordOp"]

AccessName = Literal["r", "w", "rw", "x"]
"""Read, write, read-modify-write, instruction fetch: `access` of a walk, a translation, an access of a guest."""


class Op(Code):
    """Operation codes; stored as uint8 in every columnar form."""

    READ = 0
    WRITE = 1
    MODIFY = 2  # read-modify-write: one access, checked as a write (paging.md §5)
    FETCH = 3
    SWITCH = 16  # CR3 switch; addr = process number, an address space of its own
    INVLPG = 17  # addr = linear address
    UNMAP = 18  # the guest kernel unmaps the page that holds addr, then INVLPG
    EXIT = 19  # an instruction that exits unconditionally under VMX; addr = basic exit reason (10 CPUID)
    INTERRUPT = 20  # external interrupt of the host; addr = vector
    # The guest's local APIC, see Config.tpr. Of a register, offset << 32 stands beside the value (bits 31:0), an MSR's
    # number likewise; bits 63:48 number the instruction in the guest's kernel that makes the access (binary patching).
    APIC_READ = 21  # a register through its page
    APIC_WRITE = 22
    CR8_READ = 23
    CR8_WRITE = 24  # addr = value
    MSR_READ = 25  # RDMSR, WRMSR of a register in x2APIC mode (800H-8FFH), IA32_APIC_BASE or IA32_TSC_DEADLINE
    MSR_WRITE = 26
    INTERRUPT_FLAG = 27  # CLI, STI; addr = 0, 1
    DEVICE_INTERRUPT = 28  # a device interrupts the guest; addr = vector, bit 8: level-triggered
    IPI = 29  # the guest writes its ICR; addr = what x2APIC mode has in it: bits 63:32 are the destination, which in
    # xAPIC mode is a write of its own unless a shorthand stands for it
    TSC_DEADLINE = 30  # WRMSR of IA32_TSC_DEADLINE; addr = accesses of the trace from now, 0 disarms
    PLACE = 31  # where a page of the process lies: addr = its linear address, size 0, then, size = log2 of its bytes,
    # 12 or 21, addr = its physical address; the guest kernel maps it so when it is touched
    # Of the current process; of a range of pages: addr = the first one, with their number - 1 in bits 11:0.
    MUNMAP = 48  # they are unmapped, tables that map nothing any more are freed; one flush
    PROTECT = 49  # they become read-only; a program that writes one gets a #PF, and its right back
    UNPROTECT = 50  # they can be written again
    FORK = 51  # addr = process number of a child, a new one, which shares all pages until either writes them
    COLLAPSE = 52  # the small pages of the 2 MB that hold addr become one page
    MADVISE_HUGE = 53  # a range, as above: its pages may be huge with Config(thp="madvise"); and may not, ever
    MADVISE_NOHUGE = 54


LAST_ACCESS = Op.FETCH


class GuestOp(Code):
    """Operations of a guest that :mod:`fastmmu.vmx` runs, beside those of :class:`Op`; none of a trace.

    Where a value is read it goes to ``Cpu.value`` and to the array of data. An event that the processor delivers reads
    the IDT and writes the stack: EVENT_READ and EVENT_WRITE are such accesses, and their VM exits have IDT-vectoring
    information of the event delivered last.
    """

    MOV_TO_CR0 = 32  # addr = value, from RAX
    MOV_TO_CR3 = 33
    MOV_TO_CR4 = 34
    MOV_FROM_CR0 = 35
    MOV_FROM_CR3 = 36
    MOV_FROM_CR4 = 37
    CLTS = 38
    LMSW = 39  # addr = source
    INVPCID = 40  # size = type; addr = linear address of a page, with the PCID in bits 11:0
    WRPKRU = 41  # addr = value
    CPL = 42  # a change of privilege level, as by SYSCALL or IRET; addr = 0..3
    EVENT_READ = 43  # by the supervisor, whatever the CPL
    EVENT_WRITE = 44


class RecordOp(Code):
    """Operation codes of the records of a system trace (:mod:`fastmmu.trace.system`); the accesses are those of Op."""

    READ = 0
    WRITE = 1
    MODIFY = 2
    FETCH = 3
    CR0 = 16
    CR3 = 17  # bit 63 as the instruction had it
    CR4 = 18
    EFER = 19
    INVLPG = 20
    INVPCID = 21
    EXCEPTION = 22
    INTERRUPT = 23
    FAR = 24  # IRET, SYSCALL, SYSRET
    PKRU = 25
    MARK = 30  # a phase of the workload begins
    TABLE = 32  # content of a page table, before the first walk that reads it
    CPU = 33  # of several: whose the records are that follow
    IPI = 34  # a write of the ICR
    WALK = 35  # a walk that set accessed and dirty flags, and no access
