# A logical processor for Python; `Cpu.p` for kernels.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.cpu.inv_operands cimport Executing
from fastmmu.paging.memory cimport PhysicalMemory
from fastmmu.tlb.tlb cimport TLB
from fastmmu.vmx.processor cimport Processor


cdef class Cpu:
    cdef Processor p
    cdef bint made
    cdef readonly PhysicalMemory memory
    cdef readonly TLB tlb
    cdef readonly object caps
    cdef const uint8_t[::1] op, size    # keep alive what the pointers of `p` point into
    cdef const uint64_t[::1] addr
    cdef uint64_t[::1] data
    cdef bint running                   # run() is under way, without the GIL
    cdef _set_caps(self)
    cdef Executing _executing(self)
    cdef _root(self)
    cdef _end(self, int end, str name, str detail)
    cdef _entered(self, int end, str name)
    cdef _operations(self, op, size, addr, data)
    cdef _stopped(self)
