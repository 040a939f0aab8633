"""Memory slots: making and deleting them."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset


cdef int slots_add(Slots *s, uint64_t base_gfn, uint64_t npages, uint64_t hpa) noexcept nogil:
    # its number; -1 where no number is left, -2 where it overlaps another slot
    cdef int i
    cdef Slot *slot
    if s.n == MAX_SLOTS:
        return -1
    for i in range(s.n):
        slot = &s.slot[i]
        if base_gfn < slot.base_gfn + slot.npages and slot.base_gfn < base_gfn + npages:
            return -2
    slot = &s.slot[s.n]
    memset(slot, 0, sizeof(Slot))
    slot.base_gfn = base_gfn
    slot.npages = npages
    slot.hpa = hpa
    slot.number = s.n
    s.n += 1
    s.generation += 1
    return s.n - 1


cdef void slots_delete(Slots *s, int number) noexcept nogil:
    cdef Slot *slot = &s.slot[number]
    free(slot.host)
    free(slot.dirty)
    memset(slot, 0, sizeof(Slot))
    s.generation += 1


cdef int slots_untouched(Slots *s, int number) noexcept nogil:
    # from now on the host gives each page at its first touch; -1 where memory does not suffice
    cdef Slot *slot = &s.slot[number]
    slot.host = <uint8_t *> calloc(slot.npages + 1, 1)
    return -1 if slot.host == NULL else 0


cdef void slots_free(Slots *s) noexcept nogil:
    cdef int i
    for i in range(s.n):
        free(s.slot[i].host)
        free(s.slot[i].dirty)
    free(s.ring.entry)
    memset(s, 0, sizeof(Slots))
