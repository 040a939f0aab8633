# The walks of a processor with agile paging, as walk_cached() and walk_silent() are of one of a single mode.

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Mem, Paging, Steps, Walk
from fastmmu.paging.agile cimport Agile
from fastmmu.tlb.entries cimport Tlb

# hw: the registers in force, which have shadow tables; of fewer than 4 levels nothing switches. by_nested: walks
# without a fault, [levels of the guest's own tables].
cdef int agile_cached(Mem *m, const Paging *hw, Agile *a, Tlb *t, uint64_t la, int acc, Walk *w, Steps *steps,
                      uint64_t *by_nested) noexcept nogil
cdef int agile_silent(Mem *m, const Paging *hw, Agile *a, uint64_t la, int acc, Walk *w) noexcept nogil
