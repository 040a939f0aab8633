"""Huge pages by policy, as mm/huge_memory.c and mm/khugepaged.c of Linux 6.1; header: thp.pxd. The specification is
fastmmu.reference.machine.thp.

    first touch ──► thp_suits ──► thp_block ──► a block of 2 MB, or 4 KB
                                      └──► compaction.pyx
    every so many accesses ──► thp_scan ──► areas, round robin over processes ──► thp_collapse

There are no regions (VMAs). An area of 2 MB suits if its pages are all advised alike: where the advice changes within
it, Linux has the border of a VMA there, and no huge page.
"""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport FRAME, PS, RW, US, A, D, P
from fastmmu.cpu.vcpu cimport ABORT_ADDRESS, ABORT_GUEST_FAULT, ABORT_HOST_MEMORY, DONE_ABORT, DONE_OK, vcpu_abort
from fastmmu.machine.compaction cimport compact_directly
from fastmmu.machine.frames cimport frames_split
from fastmmu.machine.kernel_memory cimport (
    give, give_page, kernel_clear, kernel_copied, kernel_read, kernel_write, new_large, new_table, own,
)
from fastmmu.machine.kernel_state cimport (
    BLOCK, DEFRAG_ALWAYS, DEFRAG_MADVISE, DEFRAG_NEVER, LARGE_FRAME, NO_FRAME, NO_PROCESS, PAGES_POLICY, THP_ALWAYS,
    THP_NEVER, Advice, GuestKernel, Thp,
)
from fastmmu.machine.shootdown cimport shoot_down
from fastmmu.paging.hash_table cimport hash_find, hash_free, hash_put
from fastmmu.paging.memory cimport mem_read64

cdef uint64_t ALL = ~(<uint64_t> 0)


cdef void thp_free(GuestKernel *k) noexcept nogil:
    hash_free(&k.thp.advice)


# ---- advice -----------------------------------------------------------------------------------------------

cdef inline uint64_t area_key(uint64_t process, uint64_t la) noexcept nogil:
    return <uint64_t> 1 << 63 | process << 26 | la >> 21


cdef int thp_advise(GuestKernel *k, bint huge, uint64_t pages) noexcept nogil:
    cdef uint64_t la = pages & ~<uint64_t> 0xFFF, end = la + ((pages & 0xFFF) + 1 << 12), bit
    cdef Advice *x
    if end >> 47 and end != 1ULL << 47:
        return vcpu_abort(k.v, ABORT_ADDRESS, end - 1)
    if k.pages != PAGES_POLICY:
        return DONE_OK                          # nobody asks for it
    while la < end:
        x = <Advice *> hash_put(&k.thp.advice, area_key(k.current[0], la))
        if x == NULL:
            return vcpu_abort(k.v, ABORT_HOST_MEMORY, la)
        bit = <uint64_t> 1 << (la >> 12 & 63)
        if huge:
            x.huge[la >> 18 & 7] |= bit
            x.nohuge[la >> 18 & 7] &= ~bit
        else:
            x.nohuge[la >> 18 & 7] |= bit
            x.huge[la >> 18 & 7] &= ~bit
        la += 4096
    return DONE_OK


cdef void thp_forget(GuestKernel *k, uint64_t la, uint64_t end) noexcept nogil:
    cdef uint64_t bit
    cdef Advice *x
    while la < end and k.thp.advice.used:
        x = <Advice *> hash_find(&k.thp.advice, area_key(k.current[0], la))
        if x == NULL:
            la = (la | BLOCK - 1) + 1
            continue
        bit = <uint64_t> 1 << (la >> 12 & 63)
        x.huge[la >> 18 & 7] &= ~bit
        x.nohuge[la >> 18 & 7] &= ~bit
        la += 4096


cdef int thp_inherit(GuestKernel *k, uint32_t process, uint32_t child) noexcept nogil:
    # dup_mmap; in a table that grows nothing is found twice: it is large enough first
    cdef uint64_t i, n = k.thp.advice.n
    cdef Advice *x
    cdef Advice *to
    cdef Advice was
    i = 0
    while i < n:
        x = <Advice *> (k.thp.advice.slots + i * k.thp.advice.size)
        if x.key and (x.key >> 26 & 0xFFFFF) == process:
            was = x[0]
            to = <Advice *> hash_put(&k.thp.advice, area_key(child, (was.key & 0x3FFFFFF) << 21))
            if to == NULL:
                return vcpu_abort(k.v, ABORT_HOST_MEMORY, child)
            to.huge, to.nohuge = was.huge, was.nohuge
            if k.thp.advice.n != n:             # it grew, and all have moved: once more, what is there stays
                n = k.thp.advice.n
                i = 0
                continue
        i += 1
    return DONE_OK


cdef enum:                      # what is said of all pages of an area
    ADVISED_NOTHING, ADVISED_HUGE, ADVISED_OTHERWISE


cdef int advised(const GuestKernel *k, uint32_t process, uint64_t la) noexcept nogil:
    cdef const Advice *x
    cdef uint64_t any = 0, all = ALL
    cdef int i
    x = <const Advice *> hash_find(&k.thp.advice, area_key(process, la)) if k.thp.advice.used else NULL
    if x == NULL:
        return ADVISED_NOTHING
    for i in range(8):
        if x.nohuge[i]:
            return ADVISED_OTHERWISE
        any |= x.huge[i]
        all &= x.huge[i]
    return ADVISED_HUGE if all == ALL else ADVISED_OTHERWISE if any else ADVISED_NOTHING


cdef bint thp_suits(GuestKernel *k, uint32_t process, uint64_t la) noexcept nogil:
    # hugepage_vma_check, transhuge_vma_suitable
    cdef int said
    if k.thp.mode == THP_NEVER:
        return False
    said = advised(k, process, la)
    return said == ADVISED_HUGE or (said == ADVISED_NOTHING and k.thp.mode == THP_ALWAYS)


cdef int thp_block(GuestKernel *k, uint32_t process, uint64_t la, bint touch, uint64_t *frame) noexcept nogil:
    # vma_thp_gfp_mask, alloc_hugepage_khugepaged_gfpmask
    cdef int defrag = k.thp.defrag
    frame[0] = new_large(k, process, la)
    if frame[0] != NO_FRAME or defrag == DEFRAG_NEVER:
        return DONE_OK
    if touch and defrag != DEFRAG_ALWAYS and not (
            defrag == DEFRAG_MADVISE and advised(k, process, la) == ADVISED_HUGE):
        return DONE_OK
    return compact_directly(k, process, la, frame)


# ---- one becomes many, many become one --------------------------------------------------------------------

cdef int thp_split(GuestKernel *k, uint64_t la, uint64_t at, uint64_t entry) noexcept nogil:
    # __split_huge_pmd, of the current process: the pages stay where they are, and a page table maps them
    cdef uint64_t pt = 0, i, rights = entry & (P | RW | US | A | D)
    k.c.thp_split_pmd += 1
    if new_table(k, &pt) or kernel_write(k, at, entry & ~P):
        return DONE_ABORT
    if shoot_down(k, k.current[0], la & ~<uint64_t> (BLOCK - 1), 1, 21, False):
        return DONE_ABORT
    for i in range(512):
        if kernel_write(k, pt + 8 * i, (entry & LARGE_FRAME) + 4096 * i | rights):
            return DONE_ABORT
    k.count[pt >> 12] = 512
    frames_split(&k.frames, entry & LARGE_FRAME, la)
    return kernel_write(k, at, pt | P | RW | US | A | D)


cdef int thp_table(GuestKernel *k, uint32_t process, uint64_t la, uint64_t *at, uint64_t *table) noexcept nogil:
    cdef uint64_t way = k.root[process], entry = 0
    cdef int level
    table[0] = 0
    for level in range(4, 1, -1):
        at[0] = way + ((la >> (9 * level + 3) & 511) << 3)
        if kernel_read(k, at[0], &entry):
            return DONE_ABORT
        if not entry & P or (level == 2 and entry & PS):
            return DONE_OK
        way = entry & FRAME
        if not own(k, way, 4096):
            return vcpu_abort(k.v, ABORT_GUEST_FAULT, la)
    table[0] = way
    return DONE_OK


cdef bint all_writable(GuestKernel *k, uint64_t pt) noexcept nogil:
    # as a look that takes no access of its own: entries are read again where it is so
    cdef uint64_t entry
    cdef int i
    for i in range(512):
        entry = mem_read64(&k.guest, pt + 8 * i)
        if entry & P and not entry & RW:
            return False
    return True


cdef int thp_collapse(GuestKernel *k, uint32_t process, uint64_t la, uint64_t at, uint64_t pt,
                      bint *none) noexcept nogil:
    # copied, or cleared where nothing was mapped
    cdef uint64_t frame = 0, entry = 0, dirty = 0
    cdef int i
    none[0] = False
    if k.shared and not all_writable(k, pt):
        return DONE_OK                          # page_count, pte_write: khugepaged leaves them alone
    if thp_block(k, process, la, False, &frame):
        return DONE_ABORT
    if frame == NO_FRAME:
        k.c.thp_collapse_alloc_failed += 1
        none[0] = True
        return DONE_OK                          # no 2 MB block is free: it stays as it is
    for i in range(512):
        if kernel_read(k, pt + 8 * i, &entry):
            return DONE_ABORT
        if entry & P:
            if kernel_copied(k, entry & FRAME):
                return DONE_ABORT
            dirty |= entry & D
            give_page(k, entry & FRAME, False)
        if kernel_clear(k, frame + 4096 * i, False):
            return DONE_ABORT
    if kernel_write(k, at, frame | P | RW | US | A | PS | dirty):
        return DONE_ABORT
    give(&k.free_tables, pt)
    k.c.collapses += 1
    return shoot_down(k, process, 0, 0, 0, True)


# ---- khugepaged -------------------------------------------------------------------------------------------

cdef bint next_area(const GuestKernel *k, uint32_t process, uint64_t *la) noexcept nogil:
    # The next 2 MB that have pages or a page table, from la on. The kernel knows its VMAs, and reads nothing for this
    cdef uint64_t table, entry = 0
    cdef int level
    while not la[0] >> 47:
        table = k.root[process]
        for level in range(4, 1, -1):
            entry = mem_read64(&k.guest, table + ((la[0] >> (9 * level + 3) & 511) << 3))
            table = entry & FRAME
            if not entry & P or not own(k, table, 4096):
                la[0] = (la[0] | (1ULL << (9 * level + 3)) - 1) + 1
                break
        else:
            return True
    return False


cdef uint32_t next_process(const GuestKernel *k, uint32_t process) noexcept nogil:
    process += 1
    while process < k.n_roots and not k.root[process]:
        process += 1
    return process if process < k.n_roots else NO_PROCESS


cdef int scan_area(GuestKernel *k, uint32_t process, uint64_t la, bint *none) noexcept nogil:
    # khugepaged_scan_pmd. It asks for a page that was referenced, too: each has been, as nobody here takes A flags away
    cdef uint64_t table = 0, at = 0, entry = 0
    cdef uint32_t missing = 0, i
    if thp_table(k, process, la, &at, &table):
        return DONE_ABORT
    if not table:
        return DONE_OK
    for i in range(512):
        if kernel_read(k, table + 8 * i, &entry):
            return DONE_ABORT
        missing += not entry & P
        if missing > k.thp.max_ptes_none:
            return DONE_OK
    return thp_collapse(k, process, la, at, table, none)


cdef int thp_scan(GuestKernel *k) noexcept nogil:
    # khugepaged_do_scan: pages_to_scan pages, an area counts as 512, a process as 1. It ends when it would come by the
    # first process a second time, or when no block was free.
    cdef Thp *t = &k.thp
    cdef uint64_t done = 0, la
    cdef bint begun = False, none = False
    t.scan_left = t.scan_every
    while done < t.scan_pages and not none:
        if t.scan_process == NO_PROCESS:
            if begun:
                break
            begun = True
            t.scan_process = 0
            t.scan_la = 0
        if next_area(k, t.scan_process, &t.scan_la):
            la = t.scan_la
            t.scan_la += BLOCK
            if not thp_suits(k, t.scan_process, la):
                continue
            done += 512
            k.c.khugepaged_pages_scanned += 512
            if scan_area(k, t.scan_process, la, &none):
                return DONE_ABORT
            continue
        done += 1
        t.scan_process = next_process(k, t.scan_process)
        t.scan_la = 0
        k.c.khugepaged_full_scans += t.scan_process == NO_PROCESS
    return DONE_OK
