# Agile paging: which of the guest's tables are walked nested, and the EPT beside the shadow tables (agile.md §4).

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Mem, Paging, gfn_t, hpa_t
from fastmmu.mmu.mmu cimport Mmu, MmuContext
from fastmmu.paging.agile cimport Agile

cdef enum AgileBack:            # which tables go back to shadow mode as an interval ends
    BACK_WRITTEN = 0            # those that were not written in it
    BACK_ALL = 1
    BACK_NEVER = 2

cdef struct NestedTable:        # a table of the guest's at which walks switch
    gfn_t gfn
    int level
    uint64_t since              # interval in which it was moved
    bint met                    # shadow tables lead to it

cdef struct AgileMmu:
    Mmu ept
    MmuContext context          # the EPT's root
    Agile cpu                   # what the processor has
    uint32_t writes             # so many in an interval move a table
    uint64_t interval           # in walks of the processor; 0: none ends
    int back                    # AgileBack
    bint begin_nested           # a root that was not seen before begins in nested mode
    uint64_t now                # number of the interval, from 1 on
    uint64_t *wrote             # [host frame] of an emulated write to the table there: interval << 8 | how many in it
    uint8_t *known              # [host frame] it was the guest's root before
    uint64_t *looked            # [host frame] tables below it, as one of level L, were looked at: interval << 8 | bit L
    NestedTable *table
    uint32_t n, room

cdef int agile_init(AgileMmu *a, Mmu *shadow, bint ad, hpa_t pool, hpa_t pool_end) noexcept nogil
cdef void agile_free(AgileMmu *a, Mmu *shadow) noexcept nogil
cdef uint64_t agile_entry(Mmu *mmu, gfn_t gfn, int access) noexcept nogil
cdef void agile_move(AgileMmu *a, Mmu *mmu, gfn_t gfn, int level) noexcept nogil
cdef bint agile_root(AgileMmu *a, Mmu *mmu, gfn_t gfn, int level) noexcept nogil
cdef void agile_leave_root(Mmu *mmu) noexcept nogil
cdef void agile_wrote(AgileMmu *a, Mmu *mmu, gfn_t gfn) noexcept nogil
cdef void agile_interval(AgileMmu *a, Mmu *mmu, const Paging *guest, gfn_t root, uint64_t now) noexcept nogil
cdef void agile_refill(Mmu *mmu, const Paging *guest, uint32_t owner) noexcept nogil
cdef void agile_forget(AgileMmu *a, Mmu *mmu) noexcept nogil
