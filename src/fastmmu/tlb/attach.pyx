"""A geometry's extensions, made for a TLB, and what they counted. Header: tlb/attach.pxd."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastmmu.tlb.clustered cimport clustered_add
from fastmmu.tlb.entries cimport EXTENDED
from fastmmu.tlb.extension cimport (
    Extension, ExtensionCounters, Extensions, Pages, extensions_free, extensions_new,
    extensions_of, extensions_ready,
)
from fastmmu.tlb.mixed cimport MIX, REHASH, REHASH_ASCENDING, SKEWED, mixed_add
from fastmmu.tlb.pom cimport pom_add
from fastmmu.tlb.prefetch cimport prefetch_add
from fastmmu.tlb.ranges cimport ranges_add
from fastmmu.errors import OutOfMemoryError, StateError
from fastmmu.tlb.extensions import PREFETCHERS

MIXED = {"skewed": SKEWED, "rehash": REHASH, "mix": MIX}

cdef int attach(Tlb *t, object extensions) except -1:
    cdef Extensions *x
    cdef int failed = 0
    if not extensions:
        return 0
    x = extensions_new(t)
    if x == NULL:
        raise OutOfMemoryError("no memory for the extensions of a TLB")
    for one in extensions:
        if one.name in ("clustered", "coalesced"):
            failed |= clustered_add(x, one.size, one.entries // one.ways, one.ways, one.name == "coalesced")
        elif one.name == "range":
            failed |= ranges_add(x, one.entries)
        elif one.name == "pom":
            failed |= pom_add(x, one.size)
        elif one.name in MIXED:
            failed |= mixed_add(x, REHASH_ASCENDING if one.kind == "ascending" else MIXED[one.name],
                                one.entries // one.ways, one.ways)
        else:
            failed |= prefetch_add(x, PREFETCHERS.index(one.kind), one.entries)
    if failed or extensions_ready(x):
        extensions_free(x)
        raise OutOfMemoryError("no memory for the extensions of a TLB; give smaller ones")
    return 0


cdef void detach(Tlb *t) noexcept:
    extensions_free(extensions_of(t))
    t.extension = NULL
    t.omit &= ~EXTENDED


cdef dict counters_of_extensions(Tlb *t):
    cdef Extension *e = extensions_of(t).first
    out = {"lookups": extensions_of(t).lookups, "hits": extensions_of(t).hits}
    while e != NULL:
        out[(<bytes> e.name).decode("ascii")] = {
            "lookups": e.c.lookups, "hits": e.c.hits, "fills": e.c.fills, "evictions": e.c.evictions,
            "invalidated": e.c.invalidated, "prefetch_walks": e.c.prefetch_walks,
            "prefetch_guest_refs": e.c.prefetch_guest_refs, "prefetch_ept_refs": e.c.prefetch_ept_refs,
            "memory_refs": e.c.memory_refs, "waited_refs": e.c.waited_refs, "queries": e.c.queries,
            "reads": e.c.reads, "mirrors": e.c.mirrors, "hits_4k": e.c.hits_by[0], "hits_2m": e.c.hits_by[1],
            "hits_1g": e.c.hits_by[2],
        }
        e = e.next
    return out


cdef void reset_extensions(Tlb *t) noexcept:
    cdef Extension *e
    if t.extension == NULL:
        return
    extensions_of(t).lookups = extensions_of(t).hits = 0
    e = extensions_of(t).first
    while e != NULL:
        memset(&e.c, 0, sizeof(ExtensionCounters))
        e = e.next


cdef int set_pages(Tlb *t, const uint64_t[::1] la, const uint64_t[::1] value, const uint64_t[::1] gpa) except -1:
    cdef Pages *p
    cdef Py_ssize_t i, n = la.shape[0]
    if t.extension == NULL:
        raise StateError("this TLB has no extension; give its geometry one by extension=")
    if value.shape[0] != n or gpa.shape[0] != n:
        raise StateError(f"la, value and gpa differ in length: {n}, {value.shape[0]}, {gpa.shape[0]}")
    for i in range(n):
        if la[i] & 0xFFF or (la[i] + (<uint64_t> 1 << 56)) >> 57 or i and la[i] <= la[i - 1]:
            raise StateError(f"la[{i}]={la[i]:#x}: give page addresses, canonical and in ascending order")
    p = &extensions_of(t).pages
    free(p.la)
    free(p.value)
    free(p.gpa)
    p.n = 0
    p.la = <uint64_t *> calloc(n + 1, 8)
    p.value = <uint64_t *> calloc(n + 1, 8)
    p.gpa = <uint64_t *> calloc(n + 1, 8)
    if p.la == NULL or p.value == NULL or p.gpa == NULL:
        raise OutOfMemoryError(f"no memory for {n} pages; give fewer")
    for i in range(n):
        p.la[i] = la[i]
        p.value[i] = value[i]
        p.gpa[i] = gpa[i]
    p.n = n
    return 0
