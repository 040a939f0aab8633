"""Roots of the VMM's tables: the one in use, and those kept for their next use (kvm_policy.md §2.4)."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu._bits cimport ONES, P
from fastmmu._memory cimport mem_write64
from fastmmu._mmu cimport NO_SP, PAE_LEVELS, ROLE_4_BYTE, Mmu, mmu_find, mmu_forget_roots, mmu_make_room, mmu_sp
from fastmmu._slots cimport slot_of
from fastmmu._spte cimport MAY_ALL


cdef void mmu_set_role(Mmu *mmu, int role, int root_level) noexcept nogil:
    # what the guest's registers make of its tables; the caller sets a root. Roots of another role are not kept, their
    # table pages are (kvm_policy.md §2.4).
    if role != mmu.role or root_level != mmu.root_level:
        mmu_forget_roots(mmu)
    mmu.role = role
    mmu.root_level = root_level


cdef int mmu_set_pae_roots(Mmu *mmu, const uint64_t *gfn, bint direct) noexcept nogil:
    # gfn: what each GB begins with, all ones: its PDPTE is not present. 0; -1 as mmu_set_root
    cdef uint32_t root[4]
    cdef int i
    for i in range(4):
        if gfn[i] != ONES and not direct and slot_of(&mmu.slots, gfn[i]) == NULL:
            return -1
    for i in range(4):
        root[i] = NO_SP
        if gfn[i] != ONES:
            root[i] = mmu_sp(mmu, gfn[i], PAE_LEVELS - 1, direct, MAY_ALL, i if mmu.role & ROLE_4_BYTE else 0)
            if root[i] == NO_SP:
                return -1
    for i in range(4):
        mmu.pae_root[i] = root[i]
        mem_write64(mmu.mem, mmu.pdpt + 8 * i, 0 if root[i] == NO_SP else mmu.sp[root[i]].hpa | P)
    return 0


cdef int mmu_set_root(Mmu *mmu, uint64_t gfn, bint direct) noexcept nogil:
    # 0; -1 where no table page is left, or where no memory is there for the guest's own root
    cdef uint32_t root
    cdef int i = 0
    if not direct and slot_of(&mmu.slots, gfn) == NULL:
        return -1
    root = mmu_find(mmu, gfn, mmu.root_level, direct, MAY_ALL, 0)
    if root != NO_SP and root == mmu.root:
        return 0
    if not mmu.policy.modern:
        mmu.root = NO_SP                        # the slides' KVM keeps none
    else:
        while i < 2 and (root == NO_SP or root != mmu.previous[i]):
            i += 1
        if root == NO_SP or root != mmu.previous[i]:
            root = NO_SP                        # not one of those kept
        while i:                                # those used since it was last used move back by one
            mmu.previous[i] = mmu.previous[i - 1]
            mmu.previous_pcid[i] = mmu.previous_pcid[i - 1]
            i -= 1
        mmu.previous[0] = mmu.root
        mmu.previous_pcid[0] = mmu.root_pcid
        mmu.root = root
    if mmu.root == NO_SP:
        mmu_make_room(mmu)
    mmu.root = mmu_sp(mmu, gfn, mmu.root_level, direct, MAY_ALL, 0)
    return -1 if mmu.root == NO_SP else 0


cdef bint mmu_root_kept(const Mmu *mmu, uint64_t gfn, uint32_t pcid) noexcept nogil:
    # the root of a guest CR3 was loaded before, and no flush of its PCID came since
    cdef uint32_t root = mmu_find(mmu, gfn, mmu.root_level, False, MAY_ALL, 0)
    cdef int i
    if root == NO_SP:
        return False
    for i in range(3):
        if root == mmu.previous[i] and pcid == mmu.previous_pcid[i]:
            return True
    return root == mmu.root and pcid == mmu.root_pcid


cdef void mmu_forget_previous(Mmu *mmu, int pcid) noexcept nogil:
    # roots kept for a PCID, or for any (-1): their next load brings them in sync
    cdef int i
    for i in range(3):
        if pcid < 0 or mmu.previous_pcid[i] == <uint32_t> pcid:
            mmu.previous[i] = NO_SP
