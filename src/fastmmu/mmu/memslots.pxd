# Memory slots: guest-physical memory, the host memory behind it, the log of what was written (kvm_policy.md §0, §4).

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport gfn_t, hpa_t

cdef enum:
    MAX_SLOTS = 32

cdef enum HostPage:             # what the host has behind a page
    HOST_ABSENT = 0             # nothing yet: never touched
    HOST_ZERO = 1               # the shared page of zeros, which can only be read
    HOST_PRESENT = 2
    HOST_SWAPPED = 3
    HOST_SHARED = 4             # one page of the host's stands for several of equal contents, and can only be read
    HOST_CLEAN = 5              # read back from disk and not written since: read-only

cdef struct Ring:               # pages written, in order, for a VMM that reads no bitmap (kvm_policy.md §4.2)
    uint64_t *entry             # [size] slot number << 48 | page of the slot
    uint32_t size
    uint32_t used
    uint32_t room               # so many used: user space must read it before the guest runs on

cdef struct Memslot:
    gfn_t base_gfn
    uint64_t npages             # 0: deleted
    hpa_t hpa                   # of the first page; equal to its guest-physical address modulo 2 MB
    uint8_t *host               # [page] HostPage; NULL: every page is present
    uint64_t *dirty             # [page / 64] bitmap; NULL: nothing is logged. With a ring it is user space's own
    Ring **ring                 # not NULL: writes go to the ring of the vCPU that runs, which is there
    bint manual                 # the log is read and cleared by separate calls
    bint initial                # manual, and begun with every page set and none protected
    int number
    bint readonly
    bint huge                   # the host backs it with 2 MB pages
    uint64_t *whole             # [page / 512 / 64] bitmap: 2 MB that are one page; NULL: all are, where `huge` says so
    bint private                # made by the VMM itself, such as the APIC-access page
    bint emulated               # private, and never mapped: the APIC-access page while APICv is off
    bint device                 # the pages are a device's, given to the guest
    uint32_t invalidating       # times that the host began to take pages away and has not ended (kvm_policy.md §6)
    gfn_t away, away_end        # which, first and behind the last: gfn, the union of all of them
    uint32_t *group             # [page] of a HOST_SHARED page: which of Memslots.group; NULL: none was merged

cdef struct Recency:            # resident pages in the order in which the host last saw them used
    uint64_t *older             # [frame] frame + 1 of the neighbour in the list, 0: none; NULL: no such order is kept
    uint64_t *newer
    uint32_t *seen              # [frame] generation in which it was last seen used
    uint64_t oldest, newest     # frame + 1; 0: the list is empty
    uint64_t n
    uint32_t generation         # the youngest

cdef struct Memslots:
    Memslot slot[32]
    int n                       # slots made so far; numbers are not used again
    int last                    # that was found last
    uint32_t generation         # of the layout: what was cached of an older one is void
    hpa_t base                  # host-physical address of the first page of any slot
    uint64_t frames             # host pages from there on
    Ring *ring                  # of the vCPU that runs; of size 0: bitmaps are used
    uint64_t limit              # pages of slots with `host` that the host keeps in memory; 0: all
    uint64_t resident
    uint64_t hand               # of the clock: frame at which it stands
    Recency recency
    uint64_t *written           # [frame / 64] bitmap: differs from what is on disk
    uint64_t sequence           # of changes that the host made to what it has behind pages
    uint32_t *group             # pages left that share the page of a group
    uint32_t groups


cdef inline Memslot *gfn_to_memslot(Memslots *s, gfn_t gfn) noexcept nogil:
    # the slot that holds a page, NULL where none does: MMIO
    cdef Memslot *slot = &s.slot[s.last]
    cdef int i
    if gfn - slot.base_gfn < slot.npages:
        return slot
    for i in range(s.n):
        slot = &s.slot[i]
        if gfn - slot.base_gfn < slot.npages:
            s.last = i
            return slot
    return NULL


cdef inline hpa_t slot_hpa(const Memslot *slot, gfn_t gfn) noexcept nogil:
    return slot.hpa + (gfn - slot.base_gfn << 12)


cdef inline bint slot_whole(const Memslot *slot, gfn_t base) noexcept nogil:
    # of the first page of 2 MB that are all in the slot
    cdef uint64_t area = base - slot.base_gfn >> 9
    return slot.whole[area >> 6] >> (area & 63) & 1


cdef inline bint slot_huge(const Memslot *slot, gfn_t gfn) noexcept nogil:
    # the host backs the whole 2 MB around this page with one page, and all of it is in the slot (kvm_policy.md §4.3)
    cdef uint64_t base = gfn & ~(<uint64_t> 511)
    return (slot.huge and base >= slot.base_gfn and base + 512 <= slot.base_gfn + slot.npages
            and slot_hpa(slot, base) & 0x1FFFFF == 0 and (slot.whole == NULL or slot_whole(slot, base)))


cdef inline int host_page(const Memslot *slot, gfn_t gfn) noexcept nogil:
    return HOST_PRESENT if slot.host == NULL else slot.host[gfn - slot.base_gfn]


cdef inline bint host_holds(int page) noexcept nogil:
    # the page is in memory, and the guest's alone
    return page == HOST_PRESENT or page == HOST_CLEAN


cdef inline bint slot_away(const Memslot *slot, gfn_t gfn) noexcept nogil:
    # the host is taking the page away: nothing may be mapped before it has done so
    return slot.invalidating and slot.away <= gfn < slot.away_end


cdef inline void mark_dirty(Memslot *slot, gfn_t gfn) noexcept nogil:
    cdef uint64_t page = gfn - slot.base_gfn
    cdef Ring *ring
    if slot.ring != NULL:
        ring = slot.ring[0]
        if ring.used < ring.size:
            ring.entry[ring.used] = <uint64_t> slot.number << 48 | page
            ring.used += 1
        else:                   # user space is late: what does not fit goes where it would have put it
            slot.dirty[page >> 6] |= <uint64_t> 1 << (page & 63)
    elif slot.dirty != NULL:
        slot.dirty[page >> 6] |= <uint64_t> 1 << (page & 63)


cdef int slots_add(Memslots *s, gfn_t base_gfn, uint64_t npages, hpa_t hpa) noexcept nogil
cdef void slots_delete(Memslots *s, int number) noexcept nogil
cdef int slots_untouched(Memslots *s, int number) noexcept nogil
cdef int slots_order(Memslots *s) noexcept nogil
cdef void order_add(Memslots *s, uint64_t frame) noexcept nogil
cdef void order_drop(Memslots *s, uint64_t frame) noexcept nogil
cdef void slots_free(Memslots *s) noexcept nogil
