"""VM exits as tracers of Linux print the event kvm:kvm_exit, so that a log can be laid beside a real machine's.

    name-1     [000]     0.005000: kvm_exit:             vcpu 0 reason CPUID rip 0x... info1 0x... info2 0x...
    name     1 [000]     0.005000:  kvm:kvm_exit: vcpu 0 reason CPUID rip 0x... info1 0x... info2 0x...

The first is of `trace-cmd report`, the second of `perf script`; both go on with intr_info and error_code. Names and
fields are those of the event's format in Linux 6.1 (TRACE_EVENT_KVM_EXIT, vmx_get_exit_info, svm_get_exit_info).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastmmu.exits import N_REASONS, ExitReason, Qualification
from fastmmu.trace.kvm_names import intel_name

__all__ = ["exit_lines"]

_AMD: dict[int, str] = {
    ExitReason.EXTERNAL_INTERRUPT: "interrupt", ExitReason.TRIPLE_FAULT: "shutdown",
    ExitReason.INTERRUPT_WINDOW: "vintr", ExitReason.NMI_WINDOW: "iret", ExitReason.TASK_SWITCH: "task_switch",
    ExitReason.CPUID: "cpuid", ExitReason.HLT: "hlt", ExitReason.INVD: "invd", ExitReason.INVLPG: "invlpg",
    ExitReason.RDTSC: "rdtsc", ExitReason.VMCALL: "hypercall", ExitReason.IO_INSTRUCTION: "io",
    ExitReason.RDMSR: "msr", ExitReason.WRMSR: "msr", ExitReason.MWAIT: "mwait", ExitReason.MONITOR: "monitor",
    ExitReason.PAUSE: "pause", ExitReason.EPT_VIOLATION: "npf", ExitReason.EPT_MISCONFIG: "npf",
    ExitReason.RDTSCP: "rdtscp", ExitReason.WBINVD: "wbinvd", ExitReason.XSETBV: "xsetbv",
    ExitReason.INVPCID: "invpcid",
}  # fmt: skip
_EXCEPTIONS = {1: "DB", 3: "BP", 6: "UD", 8: "DF", 13: "GP", 14: "PF", 17: "AC", 18: "MC"}


_INTEL = [intel_name(reason) for reason in range(N_REASONS)]


def _of_intel(reason: int, q: int, gpa: int, intr_info: int, error_code: int) -> tuple[str, int, int, int, int]:
    """Name, info1 (exit qualification), info2 (IDT-vectoring information: nothing was being delivered), and so on."""
    return _INTEL[reason], q, 0, intr_info, error_code


def _of_amd(reason: int, q: int, gpa: int, intr_info: int, error_code: int) -> tuple[str, int, int, int, int]:
    """Name, exit_info_1 and exit_info_2 as a processor of AMD has them for what the exit stands for (APM vol. 2)."""
    if reason == ExitReason.NPF:
        return "npf", q, gpa, 0, 0
    if reason == ExitReason.EPT_VIOLATION:
        code = bool(q & 0x38) | q & 2 | 4 | (q & Qualification.FETCH) << 2
        return "npf", code | (1 << 32 if q & Qualification.TRANSLATED else 1 << 33), gpa, 0, 0
    if reason == ExitReason.EPT_MISCONFIG:
        return "npf", 1 << 32 | 0xD, gpa, 0, 0  # a reserved bit; whether it was a write is not known
    if reason == ExitReason.EXCEPTION_NMI:
        vector = intr_info & 0xFF
        return f"{_EXCEPTIONS.get(vector, vector)} excp", error_code, q, 0, 0
    if reason == ExitReason.CR_ACCESS:
        kind = "read" if q >> 4 & 3 == 1 else "write"
        return f"{kind}_cr{0 if q >> 5 & 1 else q & 15}", 0, 0, 0, 0
    info1 = q if reason == ExitReason.INVLPG else int(reason == ExitReason.WRMSR)
    return _AMD.get(reason, _INTEL[reason]), info1, 0, 0, 0


def exit_lines(records: npt.NDArray[np.void], trace: str, *, form: str, vendor: str) -> list[str]:
    """A line an exit.

    :param records: of ``fastmmu.dtypes.EXIT_DTYPE``. :param trace: stands for the name of the task.
    :param form: "trace-cmd" or "perf". :param vendor: "intel" or "amd".
    """
    columns = [records[name].tolist() for name in ("reason", "qualification", "gpa", "intr_info", "error_code")]
    comm = "-".join(trace.split())[:15] or "fastmmu"
    of = _of_amd if vendor == "amd" else _of_intel
    lines = []
    for time, vcpu, rip, *values in zip(
        records["time"].tolist(), records["vcpu"].tolist(), records["rip"].tolist(), *columns, strict=True
    ):
        name, info1, info2, intr_info, error_code = of(*values)
        stamp = f"{time // 1_000_000}.{time % 1_000_000:06}"
        if form == "perf":
            head = f"{comm:>16} {vcpu + 1:5} [{vcpu:03}] {stamp:>12}:  kvm:kvm_exit: "
        else:
            head = f"{comm:>16}-{vcpu + 1:<5} [{vcpu:03}] {stamp:>12}: {'kvm_exit:':21} "
        lines.append(
            f"{head}vcpu {vcpu} reason {name} rip {rip:#x} info1 {info1:#018x} info2 {info2:#018x} "
            f"intr_info {intr_info:#010x} error_code {error_code:#010x}"
        )
    return lines
