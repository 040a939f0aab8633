# The MMU in the hands of a VMM in Python.

from libc.stdint cimport uint64_t

from fastmmu.mmu.mmu cimport Mmu as MmuState
from fastmmu.mmu.tables_port cimport Tables


cdef class Mmu(Tables):
    cdef readonly object format
    cdef readonly object rules  # KvmRules
    cdef readonly bint tdp, prefetch, unsync, flooding, fast_faults, mmio_caching, nx_huge, ad


cdef Mmu mmu_of(object owner, MmuState *mmu, const uint64_t *active, object rules)
