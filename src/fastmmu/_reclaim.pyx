"""The host's memory: a limit, and a clock that decides which page goes to disk (kvm_policy.md §6).

A page taken away keeps its contents: what is modelled is that no entry leads to it until it was fetched again.
"""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._bits cimport EPT_A, A
from fastmmu._memory cimport mem_read64, mem_write64
from fastmmu._mmu cimport Mmu, mmu_change, mmu_frame, mmu_shadowed, mmu_zap_gfn
from fastmmu._slots cimport HOST_PRESENT, HOST_SWAPPED, Slot, slot_hpa
from fastmmu._spte cimport FORMAT_EPT


cdef bint host_young(Mmu *mmu, Slot *slot, uint64_t gfn, bint clear) noexcept nogil:
    # was the page used since it was asked last? Without A flags nobody knows: its entries go, and come back where it is
    # in use; it counts as used where there were any.
    cdef uint64_t at, entry, flag = EPT_A if mmu.format == FORMAT_EPT else A
    cdef uint32_t id = mmu.rmap[mmu_frame(mmu, slot_hpa(slot, gfn))]
    cdef bint young = False
    if mmu.format == FORMAT_EPT and not mmu.ad:
        young = id != 0
        while clear and id:
            mmu_change(mmu, (id - 1) >> 9, (id - 1) & 511, 0)
            id = mmu.rmap[mmu_frame(mmu, slot_hpa(slot, gfn))]
        return young
    while id:
        at = mmu.sp[(id - 1) >> 9].hpa + 8 * ((id - 1) & 511)
        entry = mem_read64(mmu.mem, at)
        if entry & flag:
            young = True
            if clear:                           # Linux does not flush for it: a page whose translation stays looks old
                mem_write64(mmu.mem, at, entry & ~flag)
        id = mmu.sp[(id - 1) >> 9].next[(id - 1) & 511]
    return young


cdef bint host_take(Mmu *mmu, Slot *slot, uint64_t gfn) noexcept nogil:
    # the page goes to disk; a table that is shadowed stays, the VMM reads it
    if slot.host == NULL or slot.host[gfn - slot.base_gfn] != HOST_PRESENT or mmu_shadowed(mmu, gfn):
        return False
    mmu_zap_gfn(mmu, slot, gfn)
    slot.host[gfn - slot.base_gfn] = HOST_SWAPPED
    mmu.slots.resident -= 1
    mmu.counters.swap_outs += 1
    return True


cdef bint reclaim(Mmu *mmu) noexcept nogil:
    # the clock goes round until a page was not used since it came by last; at most twice
    cdef uint64_t total = 0, place, _
    cdef Slot *slot
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
                if slot.host[place] != HOST_PRESENT:
                    break
                if host_young(mmu, slot, slot.base_gfn + place, True):
                    mmu.counters.aged_young += 1
                    break
                if host_take(mmu, slot, slot.base_gfn + place):
                    return True
                break
            place -= slot.npages
    return False


cdef void host_give(Mmu *mmu, Slot *slot, uint64_t gfn) noexcept nogil:
    # a page of memory for the guest's; another goes first where the limit is reached
    if mmu.slots.limit:
        while mmu.slots.resident >= mmu.slots.limit:
            if not reclaim(mmu):
                break
    slot.host[gfn - slot.base_gfn] = HOST_PRESENT
    mmu.slots.resident += 1
