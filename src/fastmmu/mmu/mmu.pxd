# The state of the tables that the VMM owns: direct (EPT, or linear = guest-physical) and shadow. kvm_policy.md §0-§4.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmmu.arch.bits cimport FRAME
from fastmmu.arch.memtype cimport MtrrState
from fastmmu.arch.types cimport Mem, gfn_t, gva_t, hpa_t
from fastmmu.cache.hierarchy cimport CAUSE_VMM, Caches, caches_touch
from fastmmu.cache.sets cimport seldom
from fastmmu.mmu.memslots cimport Memslot, Memslots, Ring, gfn_to_memslot, slot_hpa
from fastmmu.mmu.spte cimport SpteFormat, spte_leaf, spte_present
from fastmmu.paging.memory cimport mem_read64

cdef enum:
    NO_SP = 0xFFFFFFFFU
    EPT_LEVELS = 4
    PAE_LEVELS = 3              # the top level is no table page: four PDPTEs
    PREFETCH = 8                # entries mapped together, aligned (kvm_policy.md §2.1)
    ROOTS = 4                   # roots that are kept: the one in use and three before it (kvm_policy.md §2.4)

cdef enum Ageing:               # of EPT entries without A flags, where the host asks whether their page is in use
    AGE_TRACK = 0               # their rights go, and come back with the next access: Linux 6.1
    AGE_ZAP = 1                 # they go: Linux 2.6.34 to 3.14
    AGE_OLD = 2                 # nothing, no page looks used: before

cdef enum RoleBit:              # of MmuContext.role (kvm_policy.md §1)
    ROLE_NXE = 1 << 0
    ROLE_WP = 1 << 1
    ROLE_SMEP = 1 << 2          # and not WP
    ROLE_SMAP = 1 << 3          # and not WP
    ROLE_4_BYTE = 1 << 4        # the guest's entries have 4 bytes
    ROLE_PSE = 1 << 5           # some of them map 4 MB
    ROLE_PAE = 1 << 6           # bits 62:52 are reserved
    ROLE_KEYS = 1 << 7          # bits 62:59 are a protection key

cdef struct Policy:             # what KVM does of its own choice: by its version (fastmmu.kvm_versions.KvmRules), ...
    bint unsync
    bint flooding
    bint previous_roots
    bint invpcid_page
    bint tracked_if_present
    bint large_protected
    bint invlpg_syncs_entry
    bint prefetch
    bint prefetch_last_run
    bint fast
    bint mmio_caching
    bint rewrite_stays_clean
    bint loss_of_dirty_flushes
    bint ksm_zaps
    bint nx_own_tables
    bint manual_log_for_good
    bint apic_load_retried
    bint collapse_by_size
    bint flush_all_contexts
    bint eager_split
    bint tdp                    # ... and by module parameters: EPT by the TDP MMU
    bint nx_huge                # large pages are not executable
    bint pml                    # writes are logged by the processor
    int ageing                  # Ageing
    uint32_t limit              # table pages that there may be; 0: as many as the pool holds

cdef struct Sp:                 # one VMM-owned table page, keyed by (gfn, role)
    hpa_t hpa
    gfn_t gfn                   # guest table shadowed; of a direct page: first gfn mapped
    uint32_t *next              # [512] links of each entry, as ids, in the list of what it points to:
    uint32_t *prev              # rmap of a gfn for a leaf, parents of a table otherwise
    uint64_t *target            # [512] which list that is; 0: none (spte_target of rmap)
    uint64_t unsync_child[8]    # bitmap of entries below which there may be an unsync page
    uint32_t unsync_children    # bits set
    uint32_t chain              # next page in the hash bucket
    uint32_t parents            # id of the first entry that points to this page
    uint8_t level
    uint8_t direct
    uint8_t access
    uint8_t role                # MmuContext.role when it was made
    uint8_t quadrant            # part of a guest's table of 4-byte entries that it shadows (kvm_policy.md §1)
    uint8_t used
    uint8_t unsync              # the guest may have changed its table since the entries were made
    uint8_t writes              # emulated in a row, without a fault through this page between
    uint16_t present
    uint32_t born               # serial number
    uint32_t split              # made only because an executable large page is not allowed: serial number of that, or 0

cdef struct MmuCounters:
    uint64_t changes            # entries set: made, replaced or cleared
    uint64_t tables_made        # table pages allocated
    uint64_t tables_zapped
    uint64_t zaps               # as Linux counts them: a root that is kept once more when it is freed
    uint64_t roots_emptied      # roots in use that went, so that Linux makes another page for them
    uint64_t flush_requests     # of flushes of every vCPU (kvm_flush_remote_tlbs)
    uint64_t entries_filled     # leaf entries set
    uint64_t entries_zapped     # present entries cleared or reduced
    uint64_t write_protected    # leaf entries made read-only because their page became a shadowed table
    uint64_t prefetched         # leaf entries set beside the one that faulted
    uint64_t fast               # faults fixed by giving back a right
    uint64_t fast_spurious      # of which the fast path found that nothing is amiss
    uint64_t dirty_faults       # faults that were the first write to a page since its log was read
    uint64_t swap_ins
    uint64_t swap_outs
    uint64_t swap_writes        # of these, pages that had to be written: the copy on disk was not theirs
    uint64_t aged_young         # pages found used since the host asked last
    uint64_t aged_old           # pages found unused since
    uint64_t merged             # pages that gave up their own for one shared with equal ones
    uint64_t copied             # pages that got their own again, at a write
    uint64_t recycled           # table pages given up because there were too many
    uint64_t ring_full          # times that the ring of written pages had to be read
    uint64_t retries            # faults begun again because the host changed its tables meanwhile
    uint64_t mmio_marked        # entries that mark an address without memory
    uint64_t unsynced           # times that a page became unsync
    uint64_t synced             # pages synchronized
    uint64_t pte_writes         # emulated writes to shadowed tables
    uint64_t flooded            # pages forgotten because of such writes
    uint64_t splits             # large pages split
    uint64_t logged             # pages marked in a dirty log by the VMM or by the page-modification log
    uint64_t pages[3]           # leaf entries there are, by size: 4K, 2M, 1G
    uint64_t unsync             # unsync pages there are
    uint64_t pde_zapped         # entries above page tables zapped by emulated writes of other than 0
    uint64_t nx_lpage_splits    # table pages there are in place of large ones that must not be executable
    uint64_t nx_recovered       # of them, those given up so that a large page may come back
    uint64_t to_nested          # of agile paging: times that a guest's table was moved to nested mode
    uint64_t to_shadow          # and back to shadow mode
    uint64_t refilled           # entries set as tables came back
    uint64_t max_mmu_rmap_size  # most leaf entries of one page at any time; of the TDP MMU 0, which has no reverse maps

cdef struct MmuContext:         # what a vCPU has of its own; of EPT all have the same root
    uint8_t role                # registers of the guest that make its tables mean something else (kvm_policy.md §1)
    int root_level              # 5, 4, or PAE_LEVELS: a guest of 32-bit addresses under shadow paging
    bint rooted                 # the roots below are those of the guest's CR3; else the next VM entry needs new ones
    uint32_t root               # Sp in use as root; PAE: none
    uint32_t pae_root[4]        # Sp for each GB, NO_SP where the guest's PDPTE is not present
    uint32_t previous[3]        # roots in use before, latest first
    uint32_t root_pcid          # PCID with which each was loaded
    uint32_t previous_pcid[3]
    Ring ring                   # pages that it wrote
    MmuContext *next            # of the next vCPU

cdef struct Mmu:
    Mem *mem                    # host physical memory
    Mem guest                   # guest-physical memory as a window of it: slot 0, from gpa 0
    Memslots slots
    Policy policy
    const SpteFormat *format    # of their entries
    bint noncoherent            # a device writes memory past the caches: the guest's own memory types count
    bint uncached               # the guest's CR0.CD
    bint ignore_cd              # KVM_X86_QUIRK_CD_NW_CLEARED: that changes nothing
    MtrrState mtrrs             # the guest's
    bint ad                     # A/D flags on, always but of EPT: mappings are made with A, and D where writable
    hpa_t pool, pool_end        # host-physical addresses of the VMM's table pages: next unused, end
    hpa_t pool_start
    uint32_t *owner             # [table page] its Sp
    hpa_t *freed                # pages given back
    uint32_t n_freed
    uint32_t freed_room
    Sp *sp
    uint32_t n_sp, sp_room
    uint32_t free_sp            # list of unused descriptors, through Sp.chain
    uint32_t *bucket            # [gfn & bucket_mask] first Sp of the chain
    uint64_t bucket_mask
    uint32_t *rmap              # [host frame] first 4K leaf entry
    uint32_t *rmap_large        # [host frame >> 9] first 2M leaf entry
    uint32_t *rmap_n            # [host frame] 4K leaf entries
    uint32_t *rmap_large_n      # [host frame >> 9] 2M leaf entries
    uint32_t nx_splits          # Sp.split of the last
    uint16_t *tables_in         # [host frame >> 9] shadowed tables in this 2M region: no large mapping meanwhile
    MmuContext *vcpu            # of the vCPU that runs
    MmuContext *contexts        # of every vCPU, through MmuContext.next
    hpa_t pdpt                  # host-physical address at which the PDPTEs lie, below 4 GB
    uint32_t indirect           # shadowed tables there are
    bint flush                  # an entry lost rights since this was last cleared: cached translations may be stale
    bint out_of_tables
    bint anywhere               # of a VMM's own: its entries lead where it says, not to slots alone
    Mmu *beside                 # of agile paging: the EPT beside shadow tables, and they beside it; else NULL
    uint32_t *nested            # of its shadow tables: [host frame] what mmu_nested() says of a table there; else NULL
    Caches *caches              # while an exit is handled: its accesses to tables go through them; else NULL
    MmuCounters counters


cdef inline uint32_t mmu_top(const Mmu *mmu, gva_t la) noexcept nogil:
    # the table page at which a walk of the VMM's tables begins; NO_SP: none
    return mmu.vcpu.pae_root[la >> 30 & 3] if mmu.vcpu.root_level == PAE_LEVELS else mmu.vcpu.root


cdef inline int mmu_quadrant(const Mmu *mmu, uint64_t index) noexcept nogil:
    # of the page table below an entry of a page directory: the half of the guest's 4 MB
    return index & 1 if mmu.vcpu.role & ROLE_4_BYTE else 0


cdef inline uint64_t mmu_frame(const Mmu *mmu, hpa_t hpa) noexcept nogil:
    # number of a page that a slot maps, among all of them
    return hpa - mmu.slots.base >> 12


cdef inline uint32_t mmu_nested(Mmu *mmu, gfn_t gfn) noexcept nogil:
    # of a guest's table: 1 + its number among those of nested mode (agile.md §4); 0: it is none of them
    cdef Memslot *slot
    if mmu.nested == NULL:
        return 0
    slot = gfn_to_memslot(&mmu.slots, gfn)
    return 0 if slot == NULL else mmu.nested[mmu_frame(mmu, slot_hpa(slot, gfn))]


cdef inline void mmu_written(Mmu *mmu, hpa_t hpa) noexcept nogil:
    # the page of a slot was written: what the host has of it on disk is not what it holds
    cdef uint64_t frame = mmu_frame(mmu, hpa & FRAME)
    if frame < mmu.slots.frames:                # else of an entry that nobody made
        mmu.slots.written[frame >> 6] |= <uint64_t> 1 << (frame & 63)


cdef inline void mmu_owe_flush(Mmu *mmu) noexcept nogil:
    # cached translations may be stale: the caller of the MMU flushes before the guest runs on
    mmu.flush = True


cdef inline uint64_t mmu_dirty_flag(const Mmu *mmu) noexcept nogil:
    # what says of a leaf entry that its page may have been written
    return mmu.format.dirty if mmu.ad else mmu.format.write


cdef inline void mmu_touches(const Mmu *mmu, hpa_t hpa, uint32_t nbytes, int acc) noexcept nogil:
    # an access of the VMM's to its tables, or to the guest's, goes through the caches
    if seldom(mmu.caches != NULL):
        caches_touch(mmu.caches, hpa, nbytes, acc, CAUSE_VMM)


cdef inline void mmu_touches_guest(const Mmu *mmu, uint64_t gpa, uint32_t nbytes, int acc) noexcept nogil:
    if seldom(mmu.caches != NULL):
        caches_touch(mmu.caches, <uint64_t> (mmu.guest.base - mmu.mem.base) + gpa, nbytes, acc, CAUSE_VMM)


# ---- entries and the lists in which they are linked --------------------------------------------------------------
#
# The id of an entry: its table page << 9 | its index, plus 1; 0 ends a list.
#
# Entries lie in memory that others may write, by `machine.memory` or by a guest whose tables lead there. So no index is
# taken from one: where an entry is linked, and which table page is below it, `Sp.target` says.

cdef inline uint32_t spte_id(uint32_t owner, uint64_t index) noexcept nogil:
    return (owner << 9) + <uint32_t> index + 1


cdef inline uint32_t id_owner(uint32_t id) noexcept nogil:
    return (id - 1) >> 9


cdef inline uint64_t id_index(uint32_t id) noexcept nogil:
    return (id - 1) & 511


cdef inline uint64_t spte_at(const Mmu *mmu, uint32_t owner, uint64_t index) noexcept nogil:
    return mem_read64(mmu.mem, mmu.sp[owner].hpa + 8 * index)


cdef inline uint64_t rmap_spte(const Mmu *mmu, uint32_t id) noexcept nogil:
    return spte_at(mmu, id_owner(id), id_index(id))


cdef inline uint32_t rmap_next(const Mmu *mmu, uint32_t id) noexcept nogil:
    return mmu.sp[id_owner(id)].next[id_index(id)]


cdef inline bint mmu_of_tables(const Mmu *mmu, hpa_t page) noexcept nogil:
    # the VMM's tables stand there, or will: nothing else may write to it
    return page - mmu.pool_start < mmu.pool_end - mmu.pool_start or page == mmu.pdpt & ~(<hpa_t> 0xFFF)


cdef inline bint mmu_is_root(const Mmu *mmu, hpa_t page) noexcept nogil:
    # a table page of 4 or 5 levels, which is in use
    cdef const Sp *sp
    if page - mmu.pool_start >= mmu.pool - mmu.pool_start:
        return False
    sp = &mmu.sp[mmu.owner[page - mmu.pool_start >> 12]]
    return sp.used and sp.hpa == page and sp.level >= 4


cdef inline uint64_t leaf_target(uint64_t frame, int level) noexcept nogil:
    return frame + 1 << 1 if level == 1 else (frame >> 9) + 1 << 1


cdef inline uint64_t table_target(uint32_t child) noexcept nogil:
    return <uint64_t> (child + 1) << 1 | 1


cdef inline uint32_t sp_child(const Mmu *mmu, uint32_t owner, uint64_t index) noexcept nogil:
    # the table page below an entry above level 1; NO_SP: there is none, whatever the entry says
    cdef uint64_t target = mmu.sp[owner].target[index]
    return <uint32_t> (target >> 1) - 1 if target & 1 else <uint32_t> NO_SP


# ---- table pages out of sync ---------------------------------------------------------------------------------------

cdef inline bint next_unsync(const Sp *sp, uint64_t *index) noexcept nogil:
    # moves on to the next entry, from this one, below which there may be an unsync page; False behind the last
    cdef uint64_t rest
    while index[0] < 512:
        rest = sp.unsync_child[index[0] >> 6] >> (index[0] & 63)
        if rest & 1:
            return True
        index[0] += 1 if rest else 64 - (index[0] & 63)
    return False


cdef inline uint32_t child_at(const Mmu *mmu, uint32_t owner, uint64_t index) noexcept nogil:
    # the table page below an entry; NO_SP: it points to none
    cdef uint64_t entry = spte_at(mmu, owner, index)
    if not spte_present(entry) or spte_leaf(entry, mmu.sp[owner].level):
        return NO_SP
    return sp_child(mmu, owner, index)
