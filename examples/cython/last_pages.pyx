# cython: language_level=3, boundscheck=False, wraparound=False
"""An extension of the TLB of one's own: the last pages of 4 KB that were walked, first in, first out."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from fastmmu.tlb.entries cimport F_G, TLB_LA
from fastmmu.tlb.extension cimport (
    Extension, Extensions, extension_add, extension_tag, extensions_free, extensions_new, extensions_ready,
    tag_selected,
)
from fastmmu.tlb.tlb cimport TLB
from fastmmu.tlb.which cimport Which

cdef struct Page:
    uint64_t tag, page, value

cdef struct Pages:
    uint32_t n, next
    Page *page


cdef uint64_t find(Extension *e, Extensions *x, int acc, uint64_t la) noexcept nogil:
    cdef Pages *p = <Pages *> e.self
    cdef uint64_t page = (la & TLB_LA) >> 12
    cdef uint32_t i
    for i in range(p.n):
        if p.page[i].page == page and p.page[i].tag and p.page[i].tag in (x.local, x.everywhere):
            return p.page[i].value
    return 0


cdef void filled(Extension *e, Extensions *x, int acc, uint64_t la, uint64_t value) noexcept nogil:
    cdef Pages *p = <Pages *> e.self
    if value >> 8 & 15:         # 4 KB, and no piece of a larger page
        return
    p.page[p.next].tag = extension_tag(x, value & F_G != 0)
    p.page[p.next].page = (la & TLB_LA) >> 12
    p.page[p.next].value = value
    p.next = (p.next + 1) % p.n
    e.c.fills += 1


cdef void dropped(Extension *e, Extensions *x, uint64_t la, const Which *q) noexcept nogil:
    cdef Pages *p = <Pages *> e.self
    cdef uint32_t i
    for i in range(p.n):
        if p.page[i].page == (la & TLB_LA) >> 12 and tag_selected(x, q, p.page[i].tag):
            p.page[i].tag = 0
            e.c.invalidated += 1


cdef void end(Extension *e) noexcept nogil:
    free((<Pages *> e.self).page)
    free(e.self)


def attach(TLB tlb not None, uint32_t pages):
    """Gives a TLB that has no extension this one."""
    cdef Pages *p = <Pages *> calloc(1, sizeof(Pages))
    cdef Extensions *x = extensions_new(tlb.t)
    cdef Extension *e = extension_add(x, b"last_pages") if x != NULL else NULL
    if tlb.t.extension != NULL or pages == 0 or p == NULL or e == NULL:
        free(p)
        extensions_free(x)
        raise ValueError("a TLB with an extension, no pages, or no memory")
    p.n = pages
    p.page = <Page *> calloc(pages, sizeof(Page))
    e.self, e.find, e.filled, e.dropped, e.end = p, find, filled, dropped, end
    if p.page == NULL or extensions_ready(x):
        extensions_free(x)
        raise MemoryError
