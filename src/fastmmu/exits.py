"""VM exits: reasons, exit information, what comes after them (vmx.md §5, ept.md §4.1)."""

from __future__ import annotations

from typing import NamedTuple

from fastmmu.errors import Code, Flags

__all__ = ["N_REASONS", "PRICED", "REASON_NAMES", "Action", "Completion", "Exit", "ExitReason", "FaultClass",
           "Qualification"]  # fmt: skip

N_REASONS = 81


class ExitReason(Code):
    """Basic exit reasons (bits 15:0 of the exit-reason field); from 80 on what AMD's processors have beside them."""

    EXCEPTION_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    INTERRUPT_WINDOW = 7
    NMI_WINDOW = 8
    TASK_SWITCH = 9
    CPUID = 10
    HLT = 12
    INVD = 13
    INVLPG = 14
    RDTSC = 16
    VMCALL = 18
    VMLAUNCH = 20
    VMRESUME = 24
    CR_ACCESS = 28
    DR_ACCESS = 29
    IO_INSTRUCTION = 30
    RDMSR = 31
    WRMSR = 32
    ENTRY_FAILURE_GUEST_STATE = 33
    ENTRY_FAILURE_MSR = 34
    MWAIT = 36
    MONITOR_TRAP = 37
    MONITOR = 39
    PAUSE = 40
    TPR_BELOW_THRESHOLD = 43
    APIC_ACCESS = 44
    VIRTUALIZED_EOI = 45
    GDTR_IDTR = 46
    LDTR_TR = 47
    EPT_VIOLATION = 48
    EPT_MISCONFIG = 49
    INVEPT = 50
    RDTSCP = 51
    PREEMPTION_TIMER = 52
    INVVPID = 53
    WBINVD = 54
    XSETBV = 55
    APIC_WRITE = 56
    RDRAND = 57
    INVPCID = 58
    VMFUNC = 59
    ENCLS = 60
    RDSEED = 61
    PML_FULL = 62
    XSAVES = 63
    XRSTORS = 64
    SPP_EVENT = 66
    BUS_LOCK = 74
    NOTIFY = 75
    NPF = 80  # of AMD, whose VMCB has 400H for it: a nested page fault


REASON_NAMES = tuple({int(r): r.name.lower() for r in ExitReason}.get(i, f"reason_{i}") for i in range(N_REASONS))
"""By number, as ``exits_by_reason`` has them; those without a name come from EXIT events only."""

PRICED = (
    "pf_fixed",
    "pf_guest",
    "pf_emulate",
    "mmio",
    "pf_spurious",
    "pf_retry",
    "ept_build",
    "pf_fast",
    "ept_spurious",
)
"""Classes of exits that have a cost of their own, by counter (``fastmmu.machine.costs``)."""


class FaultClass(Code):
    """What a fault needed the VMM for: of an EPT violation, an EPT misconfiguration, a #PF under shadow paging.

    The first that holds, from MMIO on: SWAPPED_IN, SPURIOUS where nothing was amiss any more, DIRTY, PROTECTED, BUILD.
    """

    NONE = 0  # no fault, or a Python policy's own handler had it
    BUILD = 1  # nothing mapped the page, or not as large, or not for this kind of access
    DIRTY = 2  # a store to a page of a slot whose writes are logged
    MMIO = 3  # no memory there: emulated
    PROTECTED = 4  # mapped without the right: read-only slot, shadowed table, copy on write, rights the VMM had taken
    SWAPPED_IN = 5  # the host read the page back from disk
    SPURIOUS = 6  # dealt with meanwhile; or begun anew, as the host changed its pages or no table page was left
    GUEST = 7  # the guest's own tables refuse: its #PF


class Completion(Code):
    """What an instruction with checked operands ends in (SDM, INVPCID, INVEPT, INVVPID; tlb.md §4, §5.1)."""

    DONE = 0
    INVALID_OPCODE = 1  # #UD
    VM_EXIT = 2
    GENERAL_PROTECTION = 3  # #GP(0)
    VMFAIL_INVALID = 4  # CF: no current VMCS
    VMFAIL_VALID = 5  # ZF: VM-instruction error 28, invalid operand


class Qualification(Flags):
    """Bits of the exit qualification (SDM vol. 3, table "Exit Qualification for EPT Violations"; ept.md §4.1)."""

    READ = 1 << 0
    WRITE = 1 << 1
    FETCH = 1 << 2
    ENTRY_R = 1 << 3
    ENTRY_W = 1 << 4
    ENTRY_X = 1 << 5
    ENTRY_XU = 1 << 6
    GLA_VALID = 1 << 7
    TRANSLATED = 1 << 8
    USER_PAGE = 1 << 9
    WRITABLE_PAGE = 1 << 10
    NX_PAGE = 1 << 11


class Action(Code):
    """What the processor does after a VM exit was handled."""

    RETRY = 0  # run the instruction again: the handler has made it possible
    EMULATED = 1  # go on behind the instruction: the handler has done its work
    INJECT_PAGE_FAULT = 2  # deliver a #PF to the guest, see Machine.inject_page_fault
    INJECT_GENERAL_PROTECTION = 4  # deliver #GP(0): the guest's write to a control register raises StateError


class Exit(NamedTuple):
    """The exit-information fields of the VMCS (SDM vol. 3, "VM-Exit Information Fields"; vmx.md §5); those unrelated to
    the reason are 0."""

    reason: ExitReason
    qualification: int  # of NPF: EXITINFO1, the error code
    guest_physical: int  # of NPF: EXITINFO2
    guest_linear: int
    error_code: int  # of a #PF
    operand: int  # source of MOV to a control register; ECX of RDMSR and WRMSR
    interruption_info: int = 0  # of an exception: 80000B0EH is a #PF, 80000B0DH a #GP
    value: int = 0  # EDX:EAX of WRMSR to EFER; source of the instruction that was #GP in real mode
