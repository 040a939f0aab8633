# A TLB is made: its arrays, as a geometry has them, and what policies of replacement need; arrays that grow.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.tlb.entries cimport Tlb
from fastmmu.tlb.policy cimport Replacer
from fastmmu.tlb.replacement cimport Replacement, TlbArray

cdef Tlb *tlb_new(uint32_t max_id) noexcept nogil       # NULL: no memory
cdef void tlb_free(Tlb *t) noexcept nogil
# LRU of more than 16 ways becomes LRU_LONG; policy, parameter: of BY_POLICY. -1: no memory.
cdef int tlb_add(Tlb *t, int unit, int classes, uint32_t sets, uint32_t ways, Replacement replacement,
                 const Replacer *policy, uint64_t parameter, bint grows) noexcept nogil
# After the last tlb_add. l2_fetches: fetches use L2 where there is no L2I; gpm_in_l2: it holds guest-physical mappings.
cdef void tlb_ready(Tlb *t, bint l2_fetches, bint gpm_in_l2) noexcept nogil
# Where each kind of access looks first; again after arrays became shared, or an extension came.
cdef void tlb_aim(Tlb *t) noexcept nogil
# Where the fetches are noted that policies look at; again after arrays became shared.
cdef void tlb_note_fetches(Tlb *t) noexcept nogil
# Afterwards, of one whose contents come from elsewhere.
cdef int tlb_reshape(Tlb *t, uint32_t i, uint32_t sets, uint32_t ways) noexcept nogil

cdef uint64_t policy_bytes(const TlbArray *a) noexcept nogil    # BY_POLICY: what its policy remembers
cdef int tlb_arrays_of(Tlb *t, object geometry) except -1   # all of a fastmmu.tlb.geometry.Geometry
