# The walk of agile paging: shadow tables from the root down, and from an entry that switches on the guest's own tables,
# over EPT (J. Gandhi, M. D. Hill, M. M. Swift: Agile paging, ISCA 2016; agile.md §1-§3).
#
#   shadow entry of level L   P, rights, frame as in any entry | 52 switch: the frame is that of the guest's table of
#                             level L - 1 in host memory; rights are those of all of the guest's entries down to L
#
# References by the levels that are the guest's, with four of each: 4 (none), 8, 12, 16, 20 (all, from a root known in
# host memory). With the root translated, too, it is the walk of nested paging, 24: paging/walk.pxd.

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Ept, Mem, Paging, Steps, Walk
from fastmmu.tlb.entries cimport Tlb

cdef extern from *:
    """
    #define FM_AGILE_SWITCH (1ULL << 52)
    """
    const uint64_t AGILE_SWITCH "FM_AGILE_SWITCH"

cdef enum AgileRoot:            # what the processor's root register holds
    ROOT_SHADOW = 0             # the root of the shadow tables
    ROOT_SWITCHED = 1           # the guest's own root table, by its address in host memory

cdef struct Agile:
    Paging guest                # the guest's registers: what its tables mean; privilege and keys as of the access
    Ept ept
    int root                    # AgileRoot
    uint64_t root_hpa           # of ROOT_SWITCHED
    int nested                  # of a processor's: levels of the guest's own tables in its last walk
    uint64_t due                # from so many walks on an exit comes first: an interval of the VMM's ends (agile.md §4)

# hw: the registers that the shadow tables are walked by, of 4 or 5 levels. t: caches that are used and filled, NULL:
# none; steps: NULL where they are not recorded. nested: how many levels of the guest's own tables were walked, at a
# fault as well. Returns a FaultCode, which is w.fault too.
cdef int walk_agile(Mem *m, const Paging *hw, Agile *a, Tlb *t, uint64_t la, int acc, Walk *w, Steps *steps,
                    int *nested) noexcept nogil
