"""The host's memory: a limit, and which page goes to disk where it is reached (kvm_policy.md §6).

Two policies. The clock goes round the pages and takes the first that was not used since it came by last: second chance,
Linux' inactive list. Least recently used, as far as a host can know: pages lie in a list, those seen used last at its
end; each bears the number of the generation in which that was. The page at the head goes, unless it turns out used when
it is asked once more, which puts it at the end. Pages of the two youngest generations do not go: where no others are
left the whole list is aged, those used since move to the end in their order, and a new generation begins. These are the
rules of Linux' multi-generational LRU (mm/vmscan.c: MIN_NR_GENS, try_to_inc_max_seq, folio_referenced) for one kind of
page and one group.

A page taken away keeps its contents: what is modelled is that no entry leads to it until it was fetched again.
"""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.ageing cimport CLEAR_FLUSH_YOUNG, CLEAR_YOUNG, host_young
from fastmmu.mmu.memslots cimport (
    HOST_CLEAN, HOST_PRESENT, HOST_SHARED, HOST_SWAPPED, Memslot, Recency, host_holds, order_add, order_drop, slot_hpa,
)
from fastmmu.mmu.mmu cimport Mmu, mmu_frame, mmu_written
from fastmmu.mmu.notifier cimport notify_end, notify_start
from fastmmu.mmu.pages cimport mmu_shadowed

cdef enum:
    PROTECTED = 2               # youngest generations of which no page goes


cdef bint host_take(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil:
    # the page goes to disk; a table that is shadowed stays, the VMM reads it
    cdef uint64_t frame = mmu_frame(mmu, slot_hpa(slot, gfn))
    if slot.host == NULL or not host_holds(slot.host[gfn - slot.base_gfn]) or mmu_shadowed(mmu, gfn):
        return False
    notify_start(mmu, slot, gfn, 1)             # what entries say of writes is the host's from here on
    slot.host[gfn - slot.base_gfn] = HOST_SWAPPED
    notify_end(mmu, slot)
    mmu.slots.resident -= 1
    order_drop(&mmu.slots, frame)
    mmu.counters.swap_outs += 1
    if mmu.slots.written[frame >> 6] >> (frame & 63) & 1:
        mmu.counters.swap_writes += 1
    return True


cdef Memslot *slot_of_frame(Mmu *mmu, uint64_t frame) noexcept nogil:
    # of a frame in the order of use
    cdef int i
    for i in range(mmu.slots.n):
        if frame - mmu_frame(mmu, mmu.slots.slot[i].hpa) < mmu.slots.slot[i].npages:
            return &mmu.slots.slot[i]
    return NULL


cdef bint frame_young(Mmu *mmu, uint64_t frame, int asked) noexcept nogil:
    # a page seen used is the last of all
    cdef Memslot *slot = slot_of_frame(mmu, frame)
    if not host_young(mmu, slot, slot.base_gfn + frame - mmu_frame(mmu, slot.hpa), asked):
        return False
    order_drop(&mmu.slots, frame)
    order_add(&mmu.slots, frame)
    return True


cdef void age(Mmu *mmu) noexcept nogil:
    cdef Recency *r = &mmu.slots.recency
    cdef uint64_t frame = r.oldest - 1, after, _
    for _ in range(r.n):
        after = r.newer[frame] - 1
        frame_young(mmu, frame, CLEAR_YOUNG)
        frame = after
    r.generation += 1


cdef bint reclaim_oldest(Mmu *mmu) noexcept nogil:
    cdef Recency *r = &mmu.slots.recency
    cdef uint64_t frame, _
    cdef Memslot *slot
    for _ in range(2 * r.n + 2 * PROTECTED):
        if not r.oldest:
            return False
        frame = r.oldest - 1
        if r.generation - r.seen[frame] < PROTECTED:
            age(mmu)
            continue
        if frame_young(mmu, frame, CLEAR_FLUSH_YOUNG):
            continue
        slot = slot_of_frame(mmu, frame)
        if host_take(mmu, slot, slot.base_gfn + frame - mmu_frame(mmu, slot.hpa)):
            return True
        order_drop(&mmu.slots, frame)           # a shadowed table cannot go: as if it were in use
        order_add(&mmu.slots, frame)
    return False


cdef bint reclaim_clock(Mmu *mmu) noexcept nogil:
    # the clock goes round until a page was not used since it came by last; at most twice
    cdef uint64_t total = 0, place, _
    cdef Memslot *slot
    cdef int i
    for i in range(mmu.slots.n):
        total += mmu.slots.slot[i].npages if mmu.slots.slot[i].host != NULL else 0
    for _ in range(2 * total + 1):
        place = mmu.slots.hand
        mmu.slots.hand = place + 1 if place + 1 < total else 0
        for i in range(mmu.slots.n):
            slot = &mmu.slots.slot[i]
            if slot.host == NULL:
                continue
            if place < slot.npages:
                if not host_holds(slot.host[place]):
                    break
                if host_young(mmu, slot, slot.base_gfn + place, CLEAR_FLUSH_YOUNG):
                    break
                if host_take(mmu, slot, slot.base_gfn + place):
                    return True
                break
            place -= slot.npages
    return False


cdef void leave_group(Mmu *mmu, Memslot *slot, uint64_t page) noexcept nogil:
    # one page fewer shares; the last takes the shared page with it
    cdef uint32_t *left = &mmu.slots.group[slot.group[page]]
    left[0] -= 1
    if left[0] == 0:
        mmu.slots.resident -= 1
    mmu.counters.copied += 1


cdef void host_give(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil:
    # a page of memory for the guest's; another goes first where the limit is reached
    cdef uint64_t page = gfn - slot.base_gfn
    if mmu.slots.limit:
        while mmu.slots.resident >= mmu.slots.limit:
            if not (reclaim_oldest(mmu) if mmu.slots.recency.older != NULL else reclaim_clock(mmu)):
                break
    if slot.host[page] == HOST_SHARED:
        leave_group(mmu, slot, page)
    slot.host[page] = HOST_PRESENT
    mmu.slots.resident += 1
    order_add(&mmu.slots, mmu_frame(mmu, slot_hpa(slot, gfn)))
    mmu_written(mmu, slot_hpa(slot, gfn))       # what is new is not on disk


cdef void host_fetch(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil:
    # a page comes back from disk, where it stays as well: read-only, so that the first write is seen
    cdef uint64_t frame = mmu_frame(mmu, slot_hpa(slot, gfn))
    host_give(mmu, slot, gfn)
    slot.host[gfn - slot.base_gfn] = HOST_CLEAN
    mmu.slots.written[frame >> 6] &= ~(<uint64_t> 1 << (frame & 63))
    mmu.counters.swap_ins += 1


cdef void host_wrote(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil:
    # the VMM writes to the page, past the tables
    if slot.host != NULL:
        mmu_written(mmu, slot_hpa(slot, gfn))
        if slot.host[gfn - slot.base_gfn] == HOST_CLEAN:
            slot.host[gfn - slot.base_gfn] = HOST_PRESENT
        elif slot.host[gfn - slot.base_gfn] == HOST_SHARED:
            notify_start(mmu, slot, gfn, 1)
            host_give(mmu, slot, gfn)
            notify_end(mmu, slot)
