"""The MMU notifier: pages that the host takes away while the guest runs, or merges (kvm_policy.md §6)."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport realloc

from fastmmu._zeroed cimport zeroed
from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.memslots cimport HOST_SHARED, Memslot, order_drop, slot_hpa
from fastmmu.mmu.mmu cimport Mmu, id_index, id_owner, mmu_frame, mmu_owe_flush, rmap_next, rmap_spte
from fastmmu.mmu.rmap cimport mmu_zap_gfn, spte_set
from fastmmu.mmu.spte cimport spte_track


cdef void notify_start(Mmu *mmu, Memslot *slot, gfn_t gfn, uint64_t pages) noexcept nogil:
    # from here to the end no entry leads to these pages, and none is made: a fault that wants one is begun again
    cdef uint64_t i, changes = mmu.counters.changes
    if slot.invalidating:
        slot.away = min(slot.away, gfn)
        slot.away_end = max(slot.away_end, gfn + pages)
    else:
        slot.away = gfn
        slot.away_end = gfn + pages
    slot.invalidating += 1
    for i in range(gfn, gfn + pages):
        mmu_zap_gfn(mmu, slot, i)
    mmu.counters.flush_requests += mmu.counters.changes != changes


cdef void notify_end(Mmu *mmu, Memslot *slot) noexcept nogil:
    # a fault that looked the page up before this must look again
    mmu.slots.sequence += 1
    slot.invalidating -= 1


cdef void change_pte(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil:
    # entries lead to the shared page from now on, read-only
    cdef uint64_t frame = mmu_frame(mmu, slot_hpa(slot, gfn)), lose, entry
    cdef uint32_t id = mmu.rmap[frame]
    lose = mmu.format.write | mmu.format.host_write | mmu.format.may_write
    if mmu.ad:
        lose |= mmu.format.accessed
    while id:
        entry = rmap_spte(mmu, id) & ~lose
        spte_set(mmu, id_owner(id), id_index(id), entry if mmu.ad else spte_track(mmu.format, entry))
        id = rmap_next(mmu, id)
    mmu_owe_flush(mmu)


cdef int host_merge(Mmu *mmu, Memslot *slot, const uint64_t *page, uint32_t n) noexcept nogil:
    # n present pages of equal contents become one; -1 where memory does not suffice. Linux 6.1 tells of it as of any
    # change, so that entries go; before, they alone were changed
    cdef void *grown
    cdef uint32_t i
    cdef gfn_t gfn
    if slot.group == NULL:
        slot.group = <uint32_t *> zeroed(slot.npages + 1, sizeof(uint32_t))
    grown = realloc(mmu.slots.group, (mmu.slots.groups + 1) * sizeof(uint32_t))
    if grown != NULL:
        mmu.slots.group = <uint32_t *> grown
    if slot.group == NULL or grown == NULL:
        return -1
    mmu.slots.group[mmu.slots.groups] = n
    for i in range(n):
        gfn = slot.base_gfn + page[i]
        if mmu.policy.ksm_zaps:
            notify_start(mmu, slot, gfn, 1)
        else:
            change_pte(mmu, slot, gfn)
        slot.host[page[i]] = HOST_SHARED
        slot.group[page[i]] = mmu.slots.groups
        order_drop(&mmu.slots, mmu_frame(mmu, slot_hpa(slot, gfn)))
        if mmu.policy.ksm_zaps:
            notify_end(mmu, slot)
        else:
            mmu.slots.sequence += 1
    mmu.slots.groups += 1
    mmu.slots.resident -= n - 1
    mmu.counters.merged += n
    return 0
