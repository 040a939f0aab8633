# A walk of the VMM's tables, from a root down to the entry for an address, as KVM's tdp_iter has it: small moves, and
# what to do with an entry is the caller's.
#
#   iter_start(mmu, &it, mmu_top(mmu, la), la)
#   while it.valid:
#       ... it.owner, it.level, it.index, it.entry ...
#       if not iter_down(mmu, &it):
#           break

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport pt_index
from fastmmu.arch.types cimport ACC_R, gva_t
from fastmmu.mmu.mmu cimport NO_SP, Mmu, mmu_top, mmu_touches, sp_child, spte_at
from fastmmu.mmu.spte cimport spte_leaf, spte_present

cdef struct TableIter:
    gva_t la                    # address in the tables: linear, under EPT guest-physical
    uint32_t owner              # table page of the entry
    int level
    uint64_t index
    uint64_t entry              # as read
    bint valid                  # there is one: not where the walk has no table page
    bint linked                 # the last move down had to link the table page (kvm_mmu_get_child_sp)


cdef inline void iter_at(const Mmu *mmu, TableIter *it, uint32_t owner) noexcept nogil:
    # to the entry in this table page
    it.owner = owner
    it.valid = owner != NO_SP
    it.level = 0
    it.index = it.entry = 0
    if it.valid:
        it.level = mmu.sp[owner].level
        it.index = pt_index(it.la, it.level)
        it.entry = spte_at(mmu, owner, it.index)
        mmu_touches(mmu, mmu.sp[owner].hpa + 8 * it.index, 8, ACC_R)


cdef inline void iter_start(const Mmu *mmu, TableIter *it, uint32_t top, gva_t la) noexcept nogil:
    it.la = la
    it.linked = False
    iter_at(mmu, it, top)


cdef inline bint iter_down(const Mmu *mmu, TableIter *it) noexcept nogil:
    # one level down; False where the entry points to no table
    cdef uint32_t child
    if not spte_present(it.entry) or spte_leaf(it.entry, it.level):
        return False
    child = sp_child(mmu, it.owner, it.index)
    if child == NO_SP:
        return False
    iter_at(mmu, it, child)
    return True


cdef inline bint iter_find(const Mmu *mmu, TableIter *it, gva_t la) noexcept nogil:
    # to the entry at which a walk from the root in use ends; False without a root
    iter_start(mmu, it, mmu_top(mmu, la), la)
    while it.valid and iter_down(mmu, it):
        pass
    return it.valid
