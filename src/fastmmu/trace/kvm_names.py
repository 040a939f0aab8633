"""Names of VM exits as Linux prints them (`arch/x86/include/uapi/asm/vmx.h`, `svm.h`), for numbers alone."""

from __future__ import annotations

from fastmmu.exits import ExitReason

__all__ = ["OTHER_NAMES", "intel_name", "reason_name"]

OTHER_NAMES: dict[int, str] = {
    ExitReason.RDMSR: "MSR_READ",
    ExitReason.WRMSR: "MSR_WRITE",
    ExitReason.ENTRY_FAILURE_GUEST_STATE: "INVALID_STATE",
    ExitReason.ENTRY_FAILURE_MSR: "MSR_LOAD_FAIL",
    ExitReason.MWAIT: "MWAIT_INSTRUCTION",
    ExitReason.MONITOR_TRAP: "MONITOR_TRAP_FLAG",
    ExitReason.MONITOR: "MONITOR_INSTRUCTION",
    ExitReason.PAUSE: "PAUSE_INSTRUCTION",
    ExitReason.VIRTUALIZED_EOI: "EOI_INDUCED",
}
_UNNAMED = {ExitReason.SPP_EVENT, ExitReason.NPF}  # of which Linux prints the number; NPF is none of Intel
_MORE = {3: "INIT_SIGNAL", 4: "SIPI_SIGNAL", 15: "RDPMC", 19: "VMCLEAR", 21: "VMPTRLD", 22: "VMPTRST", 23: "VMREAD",
         25: "VMWRITE", 26: "VMOFF", 27: "VMON", 41: "MCE_DURING_VMENTRY", 67: "UMWAIT", 68: "TPAUSE"}  # fmt: skip
_NAMED = {int(each) for each in ExitReason} - _UNNAMED
_SVM = {
    0x60: "interrupt", 0x61: "nmi", 0x62: "smi", 0x63: "init", 0x64: "vintr", 0x6E: "rdtsc", 0x6F: "rdpmc",
    0x72: "cpuid", 0x73: "rsm", 0x74: "iret", 0x75: "swint", 0x76: "invd", 0x77: "pause", 0x78: "hlt", 0x79: "invlpg",
    0x7B: "io", 0x7C: "msr", 0x7D: "task_switch", 0x7F: "shutdown", 0x80: "vmrun", 0x81: "hypercall", 0x87: "rdtscp",
    0x89: "wbinvd", 0x8A: "monitor", 0x8B: "mwait", 0x8D: "xsetbv", 0xA2: "invpcid", 0x400: "npf",
    0x401: "avic_incomplete_ipi", 0x402: "avic_unaccelerated_access",
    **{0x40 + vector: f"{name} excp" for vector, name in enumerate(
        ("DE", "DB", "2", "BP", "OF", "BR", "UD", "NM", "DF", "9", "TS", "NP", "SS", "GP", "PF", "15", "MF", "AC", "MC",
         "XF")) if not name.isdigit()},
    **{of + cr: f"{what}_cr{cr}" for of, what in ((0, "read"), (16, "write")) for cr in (0, 2, 3, 4, 8)},
    **{of + dr: f"{what}_dr{dr}" for of, what in ((0x20, "read"), (0x30, "write")) for dr in range(8)},
}  # fmt: skip
ISA_SVM = 2
"""KVM_ISA_SVM, the field `isa` of the event."""


def intel_name(reason: int) -> str:
    """That of a basic exit reason."""
    if reason not in _NAMED:
        return _MORE.get(reason, f"{reason:#x}")
    return OTHER_NAMES.get(reason, ExitReason(reason).name)


def reason_name(code: int, isa: int) -> str:
    """That of the field exit_reason, by the instruction set of the processor (KVM_ISA_VMX 1, KVM_ISA_SVM 2)."""
    if isa == ISA_SVM:
        return _SVM.get(code, f"{code:#x}")
    return intel_name(code & 0xFFFF) + (" FAILED_VMENTRY" if code >> 31 & 1 else "")
