"""VM exits: reasons, exit information, what comes after them (vmx.md §5, ept.md §4.1)."""

from __future__ import annotations

from typing import NamedTuple

from fastmmu.errors import Code, Flags

__all__ = ["N_REASONS", "PRICED", "REASON_NAMES", "VMX_REASONS", "Action", "Completion", "Exit", "ExitReason",
           "FaultClass", "Qualification", "SvmExit", "svm_exit", "svm_name"]  # fmt: skip

N_REASONS = 81
VMX_REASONS = 80
"""Basic exit reasons that an instruction of a guest may have: those of VMX."""


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


class SvmExit(Code):
    """Exit codes of AMD (VMEXIT_..., APM vol. 2, appendix C). Those of control registers and exceptions are of CR0 and
    of vector 0: the number is added."""

    CR0_READ = 0x00
    CR0_WRITE = 0x10
    EXCP = 0x40
    INTR = 0x60
    VINTR = 0x64
    CR0_SEL_WRITE = 0x65
    RDTSC = 0x6E
    CPUID = 0x72
    IRET = 0x74
    INVD = 0x76
    PAUSE = 0x77
    HLT = 0x78
    INVLPG = 0x79
    IOIO = 0x7B
    MSR = 0x7C
    TASK_SWITCH = 0x7D
    SHUTDOWN = 0x7F
    VMMCALL = 0x81
    RDTSCP = 0x87
    WBINVD = 0x89
    MONITOR = 0x8A
    MWAIT = 0x8B
    XSETBV = 0x8D
    INVLPGB = 0xA0
    INVPCID = 0xA2
    NPF = 0x400
    INVALID = -1  # VMRUN failed; or the reason is one of Intel's alone


_SVM_EXITS: dict[int, SvmExit] = {
    ExitReason.EXTERNAL_INTERRUPT: SvmExit.INTR,
    ExitReason.TRIPLE_FAULT: SvmExit.SHUTDOWN,
    ExitReason.INTERRUPT_WINDOW: SvmExit.VINTR,
    ExitReason.NMI_WINDOW: SvmExit.IRET,
    ExitReason.TASK_SWITCH: SvmExit.TASK_SWITCH,
    ExitReason.CPUID: SvmExit.CPUID,
    ExitReason.HLT: SvmExit.HLT,
    ExitReason.INVD: SvmExit.INVD,
    ExitReason.INVLPG: SvmExit.INVLPG,
    ExitReason.RDTSC: SvmExit.RDTSC,
    ExitReason.VMCALL: SvmExit.VMMCALL,
    ExitReason.IO_INSTRUCTION: SvmExit.IOIO,
    ExitReason.RDMSR: SvmExit.MSR,
    ExitReason.WRMSR: SvmExit.MSR,
    ExitReason.MWAIT: SvmExit.MWAIT,
    ExitReason.MONITOR: SvmExit.MONITOR,
    ExitReason.PAUSE: SvmExit.PAUSE,
    ExitReason.EPT_VIOLATION: SvmExit.NPF,
    ExitReason.EPT_MISCONFIG: SvmExit.NPF,
    ExitReason.RDTSCP: SvmExit.RDTSCP,
    ExitReason.WBINVD: SvmExit.WBINVD,
    ExitReason.XSETBV: SvmExit.XSETBV,
    ExitReason.INVPCID: SvmExit.INVPCID,
}


def svm_exit(reason: int, q: int, gpa: int, intr_info: int, error_code: int) -> tuple[int, int, int]:
    """EXITCODE, EXITINFO1 and EXITINFO2 of a processor of AMD for what a VM exit stands for (APM vol. 2, 15.10 and
    appendix C).

    :param q: exit qualification. :param intr_info, error_code: interruption information, error code of an exception.
    """
    if reason == ExitReason.NPF:
        return SvmExit.NPF, q, gpa
    if reason == ExitReason.EPT_VIOLATION:
        code = bool(q & 0x38) | q & 2 | 4 | (q & Qualification.FETCH) << 2
        return SvmExit.NPF, code | (1 << 32 if q & Qualification.TRANSLATED else 1 << 33), gpa
    if reason == ExitReason.EPT_MISCONFIG:
        return SvmExit.NPF, 1 << 32 | 0xD, gpa  # a reserved bit; whether it was a write is not known
    if reason == ExitReason.EXCEPTION_NMI:
        return SvmExit.EXCP + (intr_info & 0x1F), error_code, q
    if reason == ExitReason.CR_ACCESS:
        read = q >> 4 & 3 == 1
        return (SvmExit.CR0_READ if read else SvmExit.CR0_WRITE) + (0 if q >> 5 & 1 else q & 15), 0, 0
    info1 = q if reason == ExitReason.INVLPG else int(reason == ExitReason.WRMSR)
    return _SVM_EXITS.get(reason, SvmExit.INVALID), info1, 0


def svm_name(code: int) -> str:
    """Name of an exit code of AMD in lower case: npf, cpuid, cr4_write, excp_14."""
    for first, many, name in ((SvmExit.CR0_READ, 16, "cr{}_read"), (SvmExit.CR0_WRITE, 16, "cr{}_write"),
                              (SvmExit.EXCP, 32, "excp_{}")):  # fmt: skip
        if first <= code < first + many:
            return name.format(code - first)
    return SvmExit(code).name.lower()


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
