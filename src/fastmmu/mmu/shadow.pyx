"""Shadow paging of a guest in any paging mode: classify a #PF, build the shadow entry (kvm_policy.md §2)."""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport FRAME, pt_index
from fastmmu.arch.types cimport (
    ACC_R, ACC_RW, ACC_W, ACC_X, FAULT_BUS, FAULT_NONE, FAULT_PF, MODE_NONE, GuestPath, Paging, Walk, gfn_t, gpa_t,
    gva_t,
)
from fastmmu.cache.sets cimport seldom
from fastmmu.mmu.agile cimport agile_entry
from fastmmu.mmu.direct cimport (
    RET_PF_BUS, RET_PF_EMULATE, RET_PF_FIXED, RET_PF_INJECT, RET_PF_NO_TABLES, RET_PF_RETRY, RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED, Fault, direct_map, direct_page_fault, faultin_pfn, get_child_sp,
)
from fastmmu.mmu.memslots cimport Memslot, gfn_to_memslot, mark_dirty
from fastmmu.mmu.mmu cimport ROLE_KEYS, Mmu, mmu_nested, mmu_top, mmu_touches_guest
from fastmmu.mmu.pages cimport mmu_make_room, mmu_tracked
from fastmmu.mmu.reclaim cimport host_wrote
from fastmmu.mmu.rmap cimport spte_set
from fastmmu.mmu.spte cimport MAY_ALL, MAY_KEY, MAY_U, MAY_W, MAY_X
from fastmmu.mmu.sync cimport clear_writes, prefetch_guest, rights_of, sync_from, sync_page
from fastmmu.mmu.table_iter cimport TableIter, iter_at, iter_start
from fastmmu.paging.guest cimport page_fault
from fastmmu.paging.walk cimport walk_path


cdef void path_touches(Mmu *mmu, const GuestPath *path) noexcept nogil:
    cdef int level
    for level in range(path.top, path.level - 1, -1):
        mmu_touches_guest(mmu, path.hpa[level], 8, ACC_R)
        if path.updated >> level & 1:
            mmu_touches_guest(mmu, path.hpa[level], 8, ACC_W)


cdef void log_flags(Mmu *mmu, const GuestPath *path) noexcept nogil:
    # A and D flags that the walk set are writes to the guest's memory; what it read goes through the caches
    cdef Memslot *slot
    cdef int level
    if seldom(mmu.caches != NULL):
        path_touches(mmu, path)
    for level in range(path.top, path.level - 1, -1):
        if path.updated >> level & 1:
            slot = gfn_to_memslot(&mmu.slots, path.gpa[level] >> 12)
            if slot != NULL:
                host_wrote(mmu, slot, path.gpa[level] >> 12)
                mark_dirty(slot, path.gpa[level] >> 12)


cdef bint no_memory(Mmu *mmu, gpa_t gpa) noexcept nogil:
    # KVM reads no table there: the entry counts as not present. Of the APIC-access page, too, which holds zeros.
    cdef Memslot *slot = gfn_to_memslot(&mmu.slots, gpa >> 12)
    return slot == NULL or slot.private


cdef int shadow_fault(Mmu *mmu, const Paging *guest, gva_t la, int acc, bint present, gfn_t known,
                      Walk *w) noexcept nogil:
    # `guest`: the guest's registers, privilege as of the access; the walk sets the guest's A and D flags. `present`: of
    # the error code. `known`: gfn that the entry marks as MMIO, all ones: none
    cdef GuestPath path
    cdef Fault f
    cdef TableIter it
    cdef uint64_t entry
    cdef int fault, access = MAY_ALL, level = 0
    f.write = acc == ACC_W or acc == ACC_RW
    f.fetch = acc == ACC_X
    f.present = present
    if guest.mode == MODE_NONE:
        memset(w, 0, sizeof(Walk))
        w.gpa = f.la = f.gpa = la
        if la >> 12 == known:
            return RET_PF_EMULATE
        return direct_page_fault(mmu, &f)              # nothing of the guest's denies
    fault = walk_path(&mmu.guest, guest, NULL, la, acc, w, &path)
    log_flags(mmu, &path)
    if fault == FAULT_PF:
        return RET_PF_INJECT
    if fault == FAULT_BUS and no_memory(mmu, w.gpa):
        page_fault(guest, w, acc, 0)
        return RET_PF_INJECT
    if fault != FAULT_NONE:
        return RET_PF_BUS
    f.la = la
    f.gpa = w.gpa
    if w.gpa >> 12 == known:
        return RET_PF_EMULATE
    if f.write and mmu_tracked(mmu, w.gpa >> 12) and (present or not mmu.policy.tracked_if_present):
        if mmu.policy.flooding:
            clear_writes(mmu, la)
        return RET_PF_WRITE_PROTECTED
    fault = faultin_pfn(mmu, &f)
    if fault == RET_PF_RETRY or (fault == RET_PF_EMULATE and (f.slot != NULL or not mmu.policy.mmio_caching)):
        return fault
    mmu_make_room(mmu)
    iter_start(mmu, &it, mmu_top(mmu, la), la)
    if not it.valid:            # the last table page could not be had
        return RET_PF_NO_TABLES

    for level in range(path.top, path.level - 1, -1):
        entry = path.entry[level]
        access &= rights_of(entry)
        mmu.sp[it.owner].writes = 0
        if level == path.level:
            break
        if mmu_nested(mmu, (entry & FRAME) >> 12):
            spte_set(mmu, it.owner, it.index, agile_entry(mmu, (entry & FRAME) >> 12, access))
            return RET_PF_FIXED
        if not get_child_sp(mmu, &it, (entry & FRAME) >> 12, False, access):
            return RET_PF_NO_TABLES
        if it.linked:           # present from now on: a guest need not flush for that
            if mmu.sp[it.owner].unsync:
                mmu.counters.flush_requests += sync_page(mmu, guest, it.owner)
            sync_from(mmu, guest, it.owner)
            iter_at(mmu, &it, it.owner)
    if mmu.vcpu.role & ROLE_KEYS:
        if f.slot != NULL and f.write and not w.rw and w.us:
            return RET_PF_WRITE_PROTECTED           # a page of the supervisor's would not obey PKRU
        access |= w.pkey << MAY_KEY
    if f.slot != NULL and f.write and not w.rw:
        # allowed by CR0.WP = 0 only: writable for the supervisor alone (kvm_policy.md §2.1)
        access = (access | MAY_W) & ~MAY_U
        if guest.smep:
            access &= ~MAY_X
    if not w.dirty:             # the first write must fault, to set the guest's D
        access &= ~MAY_W
    if f.write and f.slot != NULL and f.slot.dirty != NULL:
        mmu.counters.dirty_faults += 1
    fault = direct_map(mmu, it.owner, &f, level, access)
    # spurious, as KVM counts it: tables may have been linked, the leaf was there (recorded: phase 2 of guest A)
    if fault >= 0 and fault != RET_PF_SPURIOUS and level == 1 and mmu.policy.prefetch:
        prefetch_guest(mmu, guest, it.owner, pt_index(la, 1))
    return fault
