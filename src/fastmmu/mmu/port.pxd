# The MMU in the hands of a VMM in Python.

from libc.stdint cimport uint64_t

from fastmmu.mmu.entries_port cimport Entries
from fastmmu.mmu.mmu cimport Mmu as MmuState
from fastmmu.mmu.mmu cimport MmuContext
from fastmmu.paging.memory cimport PhysicalMemory

cdef struct Own:                # an EPT of a VMM's own: one vCPU has its root
    MmuState mmu
    MmuContext vcpu


cdef class Mmu(Entries):
    cdef Own *own               # NULL: a machine's
    cdef readonly PhysicalMemory memory
    cdef readonly object format
    cdef readonly object rules  # KvmRules
    cdef readonly bint tdp, prefetch, unsync, flooding, fast_faults, mmio_caching, nx_huge, ad
    cdef int build(self, PhysicalMemory memory, slots, pool, bint ad) except -1
    cdef int add_slot(self, str name, slot, uint64_t nbytes) except -1
    cdef int describe(self) except -1
    cdef int hand(self) except -1


cdef Mmu mmu_of(object owner, MmuState *mmu, const uint64_t *active, object rules)
