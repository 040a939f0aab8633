# What is asked for a translation between a miss of both levels and the walk: an interface for structures beyond the
# second level. Those of fastmmu: tlb/clustered.pyx, tlb/ranges.pyx, tlb/pom.pyx, tlb/prefetch.pyx; one's own:
# docs/tlb-extensions.md.
#
# An Extension holds translations as values of entries (tlb/entries.pxd), each with a tag:
#
#   find(e, x, acc, la)             both levels lack la: the value of its page, or 0. What it finds fills both levels
#   filled(e, x, acc, la, value)    a walk found this, and both levels hold it now
#   evicted(e, x, tag, la, size)    the second level gave this page up for another one; NULL: not asked
#   dropped(e, x, la, q)            an invalidation of la: forget the entries that cover it and that q selects
#   end(e)                          frees e.self
#
# Tags stand for contexts: (VPID, EPT root), for local translations with the PCID. `x.local` and `x.everywhere` are
# those of the context in force; an entry is found where its tag is one of them. A flush of whole contexts retires their
# tags, which are never given out again: no extension has anything to do, and entries of retired tags (`tag_live`) are
# free places. So what is sound for entries of the TLB is sound here, under three rules:
#
#   - a value is what filled() brought, or what a query finds, cached under extension_tag(x, value & F_G);
#   - pieces of a larger page of the guest (is_fractured()) are not kept, so that dropped() is about one page;
#   - dropped() forgets every entry from which find() could answer la under a tag that q selects.
#
# A query is a walk that changes nothing, of any address in the context in force. It finds what a processor may cache
# unasked: entries that are present with every accessed flag set (tlb.md R2), whatever the rights; it never faults, sets
# no flag and causes no VM exit. Its references are counted only where the extension counts them.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from fastmmu.tlb.entries cimport Tlb, TlbContext
from fastmmu.tlb.lookup cimport tlb_fill, tlb_refill
from fastmmu.tlb.which cimport Which, selects

cdef enum:
    SPACES = 4096               # tags in use; where they run out all are retired
    SPACE_BITS = 12

cdef struct Queried:
    uint64_t value              # as a walk caches it; 0: nothing that may be cached
    uint64_t gpa                # guest-physical address; natively that of the page
    uint32_t guest_refs, ept_refs

ctypedef void (*PageQuery)(void *walker, Tlb *t, uint64_t la, Queried *out) noexcept nogil

cdef struct Extensions

cdef struct ExtensionCounters:
    uint64_t lookups, hits, fills, evictions
    uint64_t invalidated        # by address: those of flushed contexts are not counted
    uint64_t prefetch_walks     # walks that no access waited for
    uint64_t prefetch_guest_refs, prefetch_ept_refs
    uint64_t memory_refs        # of a structure in memory
    uint64_t queries            # free of cost: of what the walk's own cache line holds, or software keeps

cdef struct Extension:
    void *self
    uint64_t (*find)(Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil
    void (*filled)(Extension *e, Extensions *x, int acc, uint64_t la, uint64_t value) noexcept nogil
    void (*evicted)(Extension *e, Extensions *x, uint64_t tag, uint64_t la, int size) noexcept nogil
    void (*dropped)(Extension *e, Extensions *x, uint64_t la, const Which *q) noexcept nogil
    void (*end)(Extension *e) noexcept nogil
    ExtensionCounters c
    char name[16]
    Extension *next

cdef struct Space:
    uint64_t tag                # serial << 12 | index; 0: none
    TlbContext tags             # kind, VPID, PCID, EPT root; nothing else
    uint32_t place              # in live

cdef struct Pages:              # what queries of a TLB without a processor find
    uint64_t n
    uint64_t *la                # sorted, of 4K
    uint64_t *value
    uint64_t *gpa

cdef struct Extensions:
    Tlb *tlb
    Extension *first
    PageQuery query               # of the access under way; NULL: nothing is found
    void *walker
    uint64_t local, everywhere  # tags in force; 0: no entries
    bint known                  # they are those of:
    uint32_t vpid, pcid
    uint64_t eptrta
    uint64_t serial
    uint32_t n_live, next, n_free
    uint16_t live[4096]
    uint16_t free[4096]
    Space space[4096]
    uint64_t *was               # keys of a set of the second level before a fill
    bint watched                # an extension wants evictions
    uint64_t lookups, hits
    uint64_t reference          # host-physical address of the last reference to a structure in memory
    Pages pages

cdef Extensions *extensions_new(Tlb *t) noexcept nogil          # NULL: no memory
cdef void extensions_free(Extensions *x) noexcept nogil
cdef Extension *extension_add(Extensions *x, const char *name) noexcept nogil   # behind the others; NULL: no memory
cdef int extensions_ready(Extensions *x) noexcept nogil         # after the last: in use; -1: no memory, or hyperthreads

cdef uint64_t extension_tag(Extensions *x, bint everywhere) noexcept nogil      # of the context in force, for an entry
cdef void extension_drop(Tlb *t, uint64_t la, const Which *q) noexcept nogil
cdef void extension_flush(Tlb *t, const Which *q) noexcept nogil
# What tlb_fill() does, or where `again` tlb_refill(), with what extensions do at a fill.
cdef uint64_t extension_fill(Tlb *t, int acc, uint64_t la, uint64_t value, bint again) noexcept nogil
cdef void pages_query(void *walker, Tlb *t, uint64_t la, Queried *out) noexcept nogil
cdef bint extension_cached(const Tlb *t, int acc, uint64_t la) noexcept nogil   # one of both levels holds it


cdef inline Extensions *extensions_of(const Tlb *t) noexcept nogil:
    return <Extensions *> t.extension


cdef inline bint tag_live(const Extensions *x, uint64_t tag) noexcept nogil:
    return tag != 0 and x.space[tag & (SPACES - 1)].tag == tag


cdef inline bint tag_selected(const Extensions *x, const Which *q, uint64_t tag) noexcept nogil:
    return tag_live(x, tag) and selects(q, &x.space[tag & (SPACES - 1)].tags)


cdef inline void query(Extensions *x, uint64_t la, Queried *out) noexcept nogil:
    out.value = out.gpa = 0
    out.guest_refs = out.ept_refs = 0
    if x.query != NULL:
        x.query(x.walker, x.tlb, la, out)


cdef inline uint64_t fill_walked(Tlb *t, int acc, uint64_t la, uint64_t value, bint again) noexcept nogil:
    # what a walk found; again: an entry that did not suffice is cached
    if t.extension != NULL:
        return extension_fill(t, acc, la, value, again)
    return tlb_refill(t, acc, la, value) if again else tlb_fill(t, acc, la, value)


cdef inline void aim_queries(Tlb *t, PageQuery how, void *walker) noexcept nogil:
    if t.extension != NULL:
        extensions_of(t).query = how
        extensions_of(t).walker = walker


cdef inline void aim_at_pages(Tlb *t) noexcept nogil:
    # calls from Python: no processor
    if t.extension != NULL:
        extensions_of(t).query = pages_query
        extensions_of(t).walker = &extensions_of(t).pages
