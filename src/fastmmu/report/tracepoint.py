"""VM exits as tracers of Linux print the event kvm:kvm_exit, so that a log can be laid beside a real machine's.

    name-1     [000]     0.005000: kvm_exit:             vcpu 0 reason CPUID rip 0x... info1 0x... info2 0x...
    name     1 [000]     0.005000:  kvm:kvm_exit: vcpu 0 reason CPUID rip 0x... info1 0x... info2 0x...

The first is of `trace-cmd report`, the second of `perf script`; both go on with intr_info and error_code. Names and
fields are those of the event's format in Linux 6.1 (TRACE_EVENT_KVM_EXIT, vmx_get_exit_info, svm_get_exit_info).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastmmu.exits import N_REASONS, svm_exit
from fastmmu.trace.kvm_names import ISA_SVM, intel_name, reason_name

__all__ = ["exit_lines"]

_INTEL = [intel_name(reason) for reason in range(N_REASONS)]


def _of_intel(reason: int, q: int, gpa: int, intr_info: int, error_code: int) -> tuple[str, int, int, int, int]:
    """Name, info1 (exit qualification), info2 (IDT-vectoring information: nothing was being delivered), and so on."""
    return _INTEL[reason], q, 0, intr_info, error_code


def _of_amd(reason: int, q: int, gpa: int, intr_info: int, error_code: int) -> tuple[str, int, int, int, int]:
    """Name, exit_info_1 and exit_info_2 of a processor of AMD."""
    code, info1, info2 = svm_exit(reason, q, gpa, intr_info, error_code)
    return reason_name(code, ISA_SVM) if code >= 0 else _INTEL[reason], info1, info2, 0, 0


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
