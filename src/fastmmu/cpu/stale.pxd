# The detector of missing flushes: every use of a cached translation is compared with memory (tlb.md §1).
#
# Each entry that a walk reads is kept as it was, with the number of the event: `Seen`. Where a use goes elsewhere, or
# memory would refuse it, the first of these entries from the root down that memory holds differently now is the change.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Ept, Mem, Paging, Steps
from fastmmu.paging.agile cimport Agile
from fastmmu.paging.hash_table cimport HashTable
from fastmmu.tlb.lookup cimport Tlb

cdef enum StaleKind:
    STALE_ADDRESS = 0           # it leads to another place
    STALE_RIGHTS = 1            # memory maps the page, and refuses the access
    STALE_GONE = 2              # memory does not map the page
    STALE_DIRTY = 3             # a write that would set a dirty flag now
    STALE_KINDS = 4

cdef enum Owed:                 # the invalidation that was left out
    OWED_UNKNOWN = 0
    OWED_INVLPG = 1             # or INVPCID
    OWED_CR3 = 2                # MOV to CR3 without bit 63
    OWED_INVVPID = 3            # by the VMM, which changed a shadow entry or the shadow root
    OWED_INVEPT = 4             # by the VMM, which changed an EPT entry
    OWED_TLB_CONTROL = 5        # of AMD, in the place of both

cdef struct Seen:
    uint64_t key
    uint64_t at                 # host-physical address of the entry
    uint64_t gpa                # guest-physical one of a guest entry
    uint64_t value
    uint64_t root               # of the walk
    uint64_t event

cdef struct Stored:             # a word that a store changed
    uint64_t key                # its host-physical address + 1
    uint64_t event

cdef struct Stale:
    uint64_t event, la
    uint64_t cached, backed     # physical address; all ones: none
    uint64_t cached_by          # event
    uint64_t entry, was, now    # the change
    uint64_t changed_by         # event; all ones: not known
    uint32_t kind, owed
    uint32_t vpid, pcid
    uint8_t access, level, ept

cdef enum:
    STALE_EXAMPLES = 64

cdef struct Detector:
    HashTable seen              # of Seen
    HashTable stored            # of Stored
    bint shadow                 # the tables walked are the VMM's
    bint svm                    # of AMD
    Agile *agile                # of agile paging; else NULL
    uint64_t uses               # checked
    uint64_t found
    uint64_t by_kind[4]
    uint64_t by_owed[6]
    uint64_t examples
    Stale example[64]
    uint32_t last_kind, last_owed       # of the one found last, and whether it is an example
    bint last_kept

cdef Detector *stale_new() noexcept nogil      # NULL: no memory
# The one found last was legal after all: until its own flush a CPU may go by what another CPU has changed.
cdef void stale_forgive(Detector *d) noexcept nogil
cdef void stale_free(Detector *d) noexcept nogil
cdef void stale_stored(Detector *d, uint64_t at, uint64_t event) noexcept nogil
cdef void stale_walked(Detector *d, const Tlb *t, const Paging *g, uint64_t la, const Steps *steps,
                       uint64_t event) noexcept nogil
# A use of a cached translation, or of a walk that used caches, which led to `pa`. g, e: as for the access.
cdef void stale_use(Detector *d, Mem *m, const Tlb *t, const Paging *g, const Ept *e, uint64_t la, int acc,
                    bint is_global, uint64_t pa, uint64_t event) noexcept nogil
