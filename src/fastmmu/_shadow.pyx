"""Shadow paging of a 4-level guest: classify a #PF, build the shadow entry (kvm_policy.md §2)."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._bits cimport FRAME, ONES, RW, US, XD
from fastmmu._mmu cimport (
    FILL_MAPPED, FILL_NO_SLOT, FILL_UNCHANGED, MAY_ALL, MAY_U, MAY_W, MAY_X, NO_SP, Mmu, mmu_descend, mmu_hpa,
    mmu_map_below, mmu_tracked,
)
from fastmmu._types cimport ACC_RW, ACC_W, FAULT_NONE, FAULT_PF, STEP_GUEST, Paging, Steps, Walk
from fastmmu._walk cimport walk_steps


cdef inline int rights_of(uint64_t entry) noexcept nogil:
    return (0 if entry & XD else MAY_X) | (MAY_W if entry & RW else 0) | (MAY_U if entry & US else 0)


cdef int shadow_fault(Mmu *mmu, const Paging *guest, uint64_t la, int acc, Walk *w) noexcept nogil:
    # `guest`: the guest's registers, privilege as of the access; the walk sets the guest's A and D flags
    cdef Steps steps
    cdef uint32_t owner = mmu.root
    cdef uint64_t entry, changes = mmu.counters.changes
    cdef bint write = acc == ACC_W or acc == ACC_RW
    cdef int fault, i, access = MAY_ALL, level = 4
    steps.n = 0
    fault = walk_steps(&mmu.guest, guest, NULL, la, acc, w, &steps)
    if fault == FAULT_PF:
        return SHADOW_REFLECT
    if fault != FAULT_NONE:
        return SHADOW_BUS
    if mmu_hpa(mmu, w.gpa) == ONES:
        return SHADOW_MMIO
    if write and mmu_tracked(mmu, w.gpa >> 12):
        return SHADOW_EMULATE
    if owner == NO_SP:          # the last table page could not be had
        return SHADOW_NO_TABLES

    for i in range(steps.n):
        if steps.step[i].kind != STEP_GUEST:
            continue
        level = steps.step[i].level
        entry = steps.step[i].entry
        access &= rights_of(entry)
        if w.guest_shift == 12 + 9 * (level - 1):
            break
        owner = mmu_descend(mmu, owner, la >> (9 * level + 3) & 511, (entry & FRAME) >> 12, False, access)
        if owner == NO_SP:
            return SHADOW_NO_TABLES
    if write and not w.rw:      # allowed by CR0.WP = 0 only: writable for the supervisor alone (kvm_policy.md §2.1)
        access = (access | MAY_W) & ~MAY_U
        if guest.smep and w.us:
            access &= ~MAY_X
    if not w.dirty:             # the first write must fault, to set the guest's D
        access &= ~MAY_W
    fault = mmu_map_below(mmu, owner, la, w.gpa, level, access)
    if fault == FILL_MAPPED or fault == FILL_UNCHANGED:
        return SHADOW_FIXED if mmu.counters.changes != changes else SHADOW_SPURIOUS
    return SHADOW_MMIO if fault == FILL_NO_SLOT else SHADOW_NO_TABLES
