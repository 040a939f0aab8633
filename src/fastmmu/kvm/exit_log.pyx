"""What the VMM made of an exit, in the log of exits: class and cost are told by the counters that its handler moved."""

from libc.stdint cimport uint64_t

from fastmmu.arch.vmx cimport EXIT_EPT_MISCONFIG, EXIT_EPT_VIOLATION, EXIT_EXCEPTION_NMI, EXIT_NPF, N_REASONS
from fastmmu.cpu.exit_log cimport N_PRICED


cdef inline void counters(const KvmVcpu *vcpu, uint64_t *n) noexcept nogil:
    n[<int> PRICED_PF_FIXED] = vcpu.c.pf_fixed
    n[<int> PRICED_PF_GUEST] = vcpu.c.pf_guest
    n[<int> PRICED_PF_EMULATE] = vcpu.c.pf_emulate
    n[<int> PRICED_MMIO] = vcpu.c.mmio
    n[<int> PRICED_PF_SPURIOUS] = vcpu.c.pf_spurious
    n[<int> PRICED_PF_RETRY] = vcpu.c.pf_retry
    n[<int> PRICED_EPT_BUILD] = vcpu.c.ept_build
    n[<int> PRICED_PF_FAST] = vcpu.c.pf_fast
    n[<int> PRICED_EPT_SPURIOUS] = vcpu.c.ept_spurious


cdef inline bint tells(int reason, int i) noexcept nogil:
    # whether the class is one of the exit reason's (machine/costs.py, CLASSES)
    if reason == EXIT_EXCEPTION_NMI:
        return i <= PRICED_PF_RETRY
    if reason == EXIT_EPT_VIOLATION or reason == EXIT_NPF:
        return i >= PRICED_PF_RETRY or i == PRICED_MMIO
    return reason == EXIT_EPT_MISCONFIG and i == PRICED_MMIO


cdef void log_before(const KvmVcpu *vcpu) noexcept nogil:
    counters(vcpu, vcpu.cpu.log.before)


cdef void log_after(const KvmVcpu *vcpu) noexcept nogil:
    cdef uint64_t[N_PRICED] now
    cdef int i
    counters(vcpu, now)
    vcpu.cpu.log.last.fault_class = vcpu.fault_class
    for i in range(N_PRICED):
        if now[i] != vcpu.cpu.log.before[i] and tells(vcpu.cpu.log.last.reason, i):
            vcpu.cpu.log.last.kind = N_REASONS + i
            return
