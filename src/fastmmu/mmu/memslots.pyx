"""Memory slots: making and deleting them; the order in which their pages were used."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.types cimport gfn_t, hpa_t


cdef int slots_add(Memslots *s, gfn_t base_gfn, uint64_t npages, hpa_t hpa) noexcept nogil:
    # its number; -1 where no number is left, -2 where it overlaps another slot
    cdef int i
    cdef Memslot *slot
    if s.n == MAX_SLOTS:
        return -1
    for i in range(s.n):
        slot = &s.slot[i]
        if base_gfn < slot.base_gfn + slot.npages and slot.base_gfn < base_gfn + npages:
            return -2
    slot = &s.slot[s.n]
    memset(slot, 0, sizeof(Memslot))
    slot.base_gfn = base_gfn
    slot.npages = npages
    slot.hpa = hpa
    slot.number = s.n
    s.n += 1
    s.generation += 1
    return s.n - 1


cdef void slots_delete(Memslots *s, int number) noexcept nogil:
    cdef Memslot *slot = &s.slot[number]
    cdef uint64_t page
    if slot.host != NULL:
        for page in range(slot.npages):
            if host_holds(slot.host[page]):
                s.resident -= 1
                order_drop(s, (slot.hpa - s.base >> 12) + page)
    zeroed_free(slot.host)
    zeroed_free(slot.dirty)
    zeroed_free(slot.group)
    zeroed_free(slot.whole)
    memset(slot, 0, sizeof(Memslot))
    s.generation += 1


cdef int slots_untouched(Memslots *s, int number) noexcept nogil:
    # from now on the host gives each page at its first touch; -1 where memory does not suffice
    cdef Memslot *slot = &s.slot[number]
    slot.host = <uint8_t *> zeroed(slot.npages + 1, 1)
    return -1 if slot.host == NULL else 0


cdef int slots_order(Memslots *s) noexcept nogil:
    # from now on the order of use is kept; -1 where memory does not suffice
    cdef Recency *r = &s.recency
    r.older = <uint64_t *> zeroed(s.frames + 1, sizeof(uint64_t))
    r.newer = <uint64_t *> zeroed(s.frames + 1, sizeof(uint64_t))
    r.seen = <uint32_t *> zeroed(s.frames + 1, sizeof(uint32_t))
    return -1 if r.older == NULL or r.newer == NULL or r.seen == NULL else 0


cdef void order_add(Memslots *s, uint64_t frame) noexcept nogil:
    # the page was used last of all, in the youngest generation
    cdef Recency *r = &s.recency
    if r.older == NULL:
        return
    r.older[frame] = r.newest
    r.newer[frame] = 0
    r.seen[frame] = r.generation
    if r.newest:
        r.newer[r.newest - 1] = frame + 1
    else:
        r.oldest = frame + 1
    r.newest = frame + 1
    r.n += 1


cdef void order_drop(Memslots *s, uint64_t frame) noexcept nogil:
    cdef Recency *r = &s.recency
    if r.older == NULL:
        return
    if r.older[frame]:
        r.newer[r.older[frame] - 1] = r.newer[frame]
    else:
        r.oldest = r.newer[frame]
    if r.newer[frame]:
        r.older[r.newer[frame] - 1] = r.older[frame]
    else:
        r.newest = r.older[frame]
    r.n -= 1


cdef void slots_free(Memslots *s) noexcept nogil:
    cdef int i
    for i in range(s.n):
        zeroed_free(s.slot[i].host)
        zeroed_free(s.slot[i].dirty)
        zeroed_free(s.slot[i].group)
        zeroed_free(s.slot[i].whole)
    zeroed_free(s.recency.older)
    zeroed_free(s.recency.newer)
    zeroed_free(s.recency.seen)
    zeroed_free(s.written)
    free(s.group)
    memset(s, 0, sizeof(Memslots))
