# Dirty logging: which pages the guest has written (kvm_policy.md §4.1, §4.2).

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport gfn_t, hpa_t
from fastmmu.mmu.memslots cimport Memslot
from fastmmu.mmu.mmu cimport Mmu, MmuContext

cdef int dirty_open(Mmu *mmu, int number, bint manual, bint initial) noexcept nogil
cdef void dirty_protect(Mmu *mmu, int number) noexcept nogil
cdef bint split(Mmu *mmu, uint32_t owner, uint64_t index) noexcept nogil
cdef void dirty_protect_page(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil
cdef void dirty_stop(Mmu *mmu, int number) noexcept nogil
cdef uint64_t dirty_take(Mmu *mmu, int number, uint64_t *out) noexcept nogil            # protects nothing
cdef uint64_t dirty_get(Mmu *mmu, int number, uint64_t *out) noexcept nogil
cdef void dirty_clear(Mmu *mmu, int number, uint64_t first, uint64_t pages) noexcept nogil
cdef void dirty_collect(Mmu *mmu) noexcept nogil
cdef int dirty_ring(Mmu *mmu, uint32_t size) noexcept nogil
cdef int dirty_ring_of(Mmu *mmu, MmuContext *c, uint32_t size) noexcept nogil
cdef void nx_recover(Mmu *mmu, uint32_t ratio) noexcept nogil
cdef void dirty_drain(Mmu *mmu, hpa_t log, uint64_t index) noexcept nogil
