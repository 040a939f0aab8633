# The log of exits of a machine, as arrays.

from libc.stdint cimport uint64_t

from fastmmu.cpu.exit_log cimport ExitLog
from fastmmu.kvm.kvm cimport KvmVcpu

cdef class ExitRing:
    cdef ExitLog log
    cdef object copied(self, n)
    cdef object kept(self)
    cdef object take(self, first)


cdef void log_runs(KvmVcpu *vcpu) noexcept nogil
cdef ExitRing ring_of(KvmVcpu *vcpu, uint64_t keep)
