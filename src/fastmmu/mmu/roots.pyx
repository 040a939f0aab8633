"""Roots of the VMM's tables: the one in use, and those kept for their next use (kvm_policy.md §2.4)."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free
from libc.string cimport memset

from fastmmu.arch.bits cimport ONES, P
from fastmmu.arch.types cimport gfn_t, hpa_t
from fastmmu.mmu.memslots cimport gfn_to_memslot
from fastmmu.mmu.mmu cimport EPT_LEVELS, NO_SP, PAE_LEVELS, ROLE_4_BYTE, Mmu, MmuContext
from fastmmu.mmu.pages cimport mmu_find, mmu_forget_roots, mmu_make_room, mmu_sp
from fastmmu.mmu.spte cimport MAY_ALL
from fastmmu.paging.memory cimport mem_write64


cdef void mmu_vcpu_create(Mmu *mmu, MmuContext *c) noexcept nogil:
    # one vCPU more, without a root; the first is loaded
    cdef MmuContext **last = &mmu.contexts
    memset(c, 0, sizeof(MmuContext))
    c.root_level = EPT_LEVELS if mmu.vcpu == NULL else mmu.vcpu.root_level
    mmu_forget_roots(c)
    while last[0] != NULL:
        last = &last[0].next
    last[0] = c
    if mmu.vcpu == NULL:
        mmu_vcpu_load(mmu, c)


cdef void mmu_vcpu_destroy(Mmu *mmu, MmuContext *c) noexcept nogil:
    # one that is not loaded goes; what it logged has been read. Its roots are tables like others from now on
    cdef MmuContext **place = &mmu.contexts
    while place[0] != c:
        place = &place[0].next
    place[0] = c.next
    free(c.ring.entry)


cdef void mmu_vcpu_load(Mmu *mmu, MmuContext *c) noexcept nogil:
    # this vCPU runs from now on
    mmu.vcpu = c
    mmu.slots.ring = &c.ring


cdef hpa_t mmu_common_root(Mmu *mmu) noexcept nogil:
    # of direct mappings, which all vCPUs have in common: host-physical address of the root, for the vCPU that runs as
    # well; 0: there is none
    mmu.vcpu.root = mmu_find(mmu, 0, mmu.vcpu.root_level, True, MAY_ALL, 0)
    mmu.vcpu.rooted = mmu.vcpu.root != NO_SP
    return mmu.sp[mmu.vcpu.root].hpa if mmu.vcpu.rooted else 0


cdef void mmu_set_role(Mmu *mmu, int role, int root_level) noexcept nogil:
    # what the guest's registers make of its tables; the caller sets a root. Roots of another role are not kept, their
    # table pages are (kvm_policy.md §2.4).
    if role != mmu.vcpu.role or root_level != mmu.vcpu.root_level:
        mmu_forget_roots(mmu.vcpu)
    mmu.vcpu.role = role
    mmu.vcpu.root_level = root_level


cdef int mmu_set_pae_roots(Mmu *mmu, const gfn_t *gfn, bint direct) noexcept nogil:
    # gfn: what each GB begins with, all ones: its PDPTE is not present. 0; -1 as mmu_set_root
    cdef uint32_t root[4]
    cdef int i
    for i in range(4):
        if gfn[i] != ONES and not direct and gfn_to_memslot(&mmu.slots, gfn[i]) == NULL:
            return -1
    mmu_make_room(mmu)
    for i in range(4):
        root[i] = NO_SP
        if gfn[i] != ONES:
            root[i] = mmu_sp(mmu, gfn[i], PAE_LEVELS - 1, direct, MAY_ALL, i if mmu.vcpu.role & ROLE_4_BYTE else 0)
            if root[i] == NO_SP:
                return -1
    for i in range(4):
        mmu.vcpu.pae_root[i] = root[i]
    mmu.vcpu.rooted = True
    mmu_write_pdptes(mmu)
    return 0


cdef void mmu_write_pdptes(Mmu *mmu) noexcept nogil:
    cdef uint32_t root
    cdef int i
    for i in range(4):
        root = mmu.vcpu.pae_root[i]
        mem_write64(mmu.mem, mmu.pdpt + 8 * i, 0 if root == NO_SP else mmu.sp[root].hpa | P)


cdef int mmu_set_root(Mmu *mmu, gfn_t gfn, bint direct) noexcept nogil:
    # 0; -1 where no table page is left, or where no memory is there for the guest's own root
    cdef uint32_t root
    cdef int i = 0
    if not direct and gfn_to_memslot(&mmu.slots, gfn) == NULL:
        return -1
    root = mmu_find(mmu, gfn, mmu.vcpu.root_level, direct, MAY_ALL, 0)
    if root != NO_SP and root == mmu.vcpu.root:
        return 0
    if not mmu.policy.previous_roots:
        mmu.vcpu.root = NO_SP                        # the slides' KVM keeps none
    else:
        while i < 2 and (root == NO_SP or root != mmu.vcpu.previous[i]):
            i += 1
        if root == NO_SP or root != mmu.vcpu.previous[i]:
            root = NO_SP                        # not one of those kept
        while i:                                # those used since it was last used move back by one
            mmu.vcpu.previous[i] = mmu.vcpu.previous[i - 1]
            mmu.vcpu.previous_pcid[i] = mmu.vcpu.previous_pcid[i - 1]
            i -= 1
        mmu.vcpu.previous[0] = mmu.vcpu.root
        mmu.vcpu.previous_pcid[0] = mmu.vcpu.root_pcid
        mmu.vcpu.root = root
    if mmu.vcpu.root == NO_SP:
        mmu_make_room(mmu)
    mmu.vcpu.root = mmu_sp(mmu, gfn, mmu.vcpu.root_level, direct, MAY_ALL, 0)
    mmu.vcpu.rooted = mmu.vcpu.root != NO_SP
    return 0 if mmu.vcpu.rooted else -1


cdef uint32_t mmu_roots(const Mmu *mmu) noexcept nogil:
    # that the vCPU has, in use or kept
    cdef const MmuContext *c = mmu.vcpu
    cdef uint32_t i, n = c.root != NO_SP if c.root_level != PAE_LEVELS else c.pae_root[3] != NO_SP
    for i in range(3):
        n += (c.pae_root[i] if c.root_level == PAE_LEVELS else c.previous[i]) != NO_SP
    return n


cdef bint mmu_root_found(const Mmu *mmu, gfn_t gfn) noexcept nogil:
    # the root of a guest's table is the one in use, or one of those kept
    cdef uint32_t root = mmu_find(mmu, gfn, mmu.vcpu.root_level, False, MAY_ALL, 0)
    return root != NO_SP and (root == mmu.vcpu.root or root == mmu.vcpu.previous[0]
                              or root == mmu.vcpu.previous[1] or root == mmu.vcpu.previous[2])


cdef bint mmu_root_kept(const Mmu *mmu, gfn_t gfn, uint32_t pcid) noexcept nogil:
    # the root of a guest CR3 was loaded before, and no flush of its PCID came since
    cdef uint32_t root = mmu_find(mmu, gfn, mmu.vcpu.root_level, False, MAY_ALL, 0)
    cdef int i
    if root == NO_SP:
        return False
    for i in range(3):
        if root == mmu.vcpu.previous[i] and pcid == mmu.vcpu.previous_pcid[i]:
            return True
    return root == mmu.vcpu.root and pcid == mmu.vcpu.root_pcid


cdef void mmu_forget_previous(Mmu *mmu, int pcid) noexcept nogil:
    # roots kept for a PCID, or for any (-1): their next load brings them in sync
    cdef int i
    for i in range(3):
        if pcid < 0 or mmu.vcpu.previous_pcid[i] == <uint32_t> pcid:
            mmu.vcpu.previous[i] = NO_SP
