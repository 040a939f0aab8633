# Enumeration of an address space: the state of one that is under way, and what it hands out.
#
#   root ─► guest tables (one being read at each level) ─► page ─► EPT tables (likewise) ─► rows
#
# An enumeration stops wherever its room ends and goes on from there: where it is stands in the struct alone. Work that
# leads nowhere is bounded: a table of which all was read without a row is remembered as barren and not read again.

from libc.stdint cimport uint64_t

from fastmmu.paging.leaf_rows cimport (
    CAUSES, KEPT_FAULTS, REGIONS, EptRegion, LeafFault, LeafRow, Leaves, Page, Table, leaves_fault,
)


cdef void leaves_types(Leaves *s) noexcept nogil
cdef bint leaves_range(Leaves *s, uint64_t first, uint64_t last) noexcept nogil
cdef void leaves_run(Leaves *s, LeafRow *out, uint64_t room, uint64_t work) noexcept nogil
cdef void leaves_free(Leaves *s) noexcept nogil
