# What a CPU may still hold (tlb.md §1, §3), where other CPUs change the tables.
#
# Until its own flush an old translation is as legal as a new one (SDM vol. 3A 4.10.4.3, 4.10.5). Two questions:
#
#   of a CPU that is watched    did it use this translation since its last invalidation of the page?   `Held`
#   of one that is simulated    did the tables give it at any time since, level by level: a processor may cache what it
#                               never used, and a VMM's shadow tables what another vCPU used?          `Past`

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Mem, Paging, Walk
from fastmmu.paging.hash_table cimport HashTable

cdef enum Standing:             # of an address
    STANDS_NOW = 0              # a walk now leads there
    STANDS_HELD = 1             # what the CPU may still hold does
    STANDS_NOT = 2

cdef enum:
    GLOBAL_PCID = 0x1000        # in the place of a PCID
    KNOWN = 1024
    PASTS = 16                  # values of an entry that are kept

cdef struct Past:               # of an entry: values that it had, each until a clock
    uint64_t key                # guest-physical address of the entry, bit 63 set
    uint64_t value[16]
    uint64_t until[16]
    uint32_t next               # the oldest, which the next replaces

cdef struct Tables:             # of all CPUs
    Mem *memory                 # guest-physical
    uint64_t clock              # changes, walks, invalidations
    uint64_t changes
    HashTable past
    bint no_memory              # the host has none: what should be kept is not

cdef struct Held:               # a translation of a page
    uint64_t frame
    uint64_t since              # clock of the last walk that gave it
    uint32_t next               # of the same page, 0: none
    uint8_t us, rw, xd, pkey, dirty

cdef struct HeldPage:
    uint64_t key
    uint64_t dropped            # clock at which the caches of the simulated CPU dropped the page alone
    uint32_t first              # in the pool

cdef struct Known:              # an address that a walk gave, while neither tables nor registers have changed since
    uint64_t tag, frame
    uint64_t changes, own

cdef struct MayHold:            # of a CPU
    Paging g                    # as the guest has it; walks set no flags
    Tables *t
    uint64_t own                # register writes and invalidations
    uint64_t flushed[4096]      # [PCID] clock of the last flush of all its translations but the global ones
    uint64_t flushed_local      # of all PCIDs
    uint64_t flushed_all        # with the global ones
    HashTable pages             # of HeldPage
    Held *pool                  # [0] is none
    uint32_t n, room, free      # used; allocated; first of those given back
    Walk w                      # of the access judged last, if it was walked
    Known known[1024]

cdef void tables_new(Tables *t, Mem *memory) noexcept nogil
cdef void tables_free(Tables *t) noexcept nogil
# Before a store of `nbytes` to guest-physical memory: whether it changes anything, and then Tables.changes is one more
# after it.
cdef bint tables_store(Tables *t, uint64_t gpa, const void *value, uint32_t nbytes) noexcept nogil

cdef MayHold *may_hold_new(Tables *t) noexcept nogil        # NULL: no memory
cdef void may_hold_free(MayHold *h) noexcept nogil

# user, ac: by whose rights, as for vcpu_access. may_hold_could is of the access that was judged before.
cdef int may_hold_walked(MayHold *h, uint64_t la, int acc, int user, uint64_t pa, Known *k, uint64_t tag) noexcept nogil
cdef int may_hold_fault(MayHold *h, uint64_t la, int acc, int user, bint ac, uint32_t code) noexcept nogil
cdef bint may_hold_allows(MayHold *h, uint64_t la, int acc, int user, bint ac) noexcept nogil
cdef int may_hold_could(MayHold *h, uint64_t la, int acc, int user, uint64_t pa) noexcept nogil
# The flags A and D that a walk of the watched CPU set, where the simulated CPU went by what it held: they are set now.
# STANDS_NOW: it had set them itself; STANDS_NOT: it holds nothing that served the access without.
cdef int may_hold_flags(MayHold *h, uint64_t la, int acc, int user, bint ac) noexcept nogil

cdef void may_hold_registers(MayHold *h, const Paging *g) noexcept nogil       # CR0, CR4, EFER
cdef void may_hold_cr0(MayHold *h, uint64_t was, const Paging *g, uint64_t now) noexcept nogil
cdef void may_hold_cr3(MayHold *h, uint64_t value) noexcept nogil
cdef void may_hold_cr4(MayHold *h, uint64_t was, const Paging *g, uint64_t now) noexcept nogil
cdef void may_hold_pkru(MayHold *h, uint32_t pkru) noexcept nogil
cdef void may_hold_invlpg(MayHold *h, uint64_t la) noexcept nogil
cdef void may_hold_invpcid(MayHold *h, int type, uint32_t pcid, uint64_t la) noexcept nogil
cdef void may_hold_page_fault(MayHold *h, uint64_t la, bint here) noexcept nogil     # here: of the simulated CPU, too


cdef inline int may_hold_used(MayHold *h, uint64_t la, int acc, int user, bint ac, uint64_t pa) noexcept nogil:
    # the Standing of an address that the watched CPU used, which it may hold from now on
    cdef uint64_t tag = (la >> 12) << 6 | acc << 4 | user << 1 | ac | 8
    cdef Known *k = &h.known[(la >> 12 ^ la >> 20 ^ <uint64_t> (acc << 8)) & (KNOWN - 1)]
    h.g.ac = ac
    if k.tag == tag and k.changes == h.t.changes and k.own == h.own and k.frame == pa & ~<uint64_t> 0xFFF:
        return STANDS_NOW
    return may_hold_walked(h, la, acc, user, pa, k, tag)
