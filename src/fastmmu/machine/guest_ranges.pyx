"""Ranges of pages that go or lose rights with one flush, fork, copy on write; header: guest_ranges.pxd.

    munmap, mprotect ──► entries of the range ──► freed pages, freed tables ──► one shootdown (mmu_gather of Linux)

There are no regions (VMAs): a page that went comes back empty at its next touch, one that was protected can be written
again after a #PF, as by the handler of a program. A 2 MB page of which a part is in the range is split, or
changes as a whole with pages="2m".
"""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport FRAME, PS, RW, A, D, P
from fastmmu.cpu.vcpu cimport (
    ABORT_ADDRESS, ABORT_GUEST_FAULT, ABORT_GUEST_MEMORY, ABORT_HOST_MEMORY, DONE_ABORT, DONE_OK, vcpu_abort,
)
from fastmmu.machine.frames cimport FRAMES_FIRST_TOUCH
from fastmmu.machine.kernel_memory cimport (
    give, give_page, kernel_clear, kernel_copied, kernel_read, kernel_write, new_data, new_large, new_table, own,
    page_shared,
)
from fastmmu.machine.kernel_state cimport BLOCK, LARGE_FRAME, NO_FRAME, PAGES_2M, GuestKernel
from fastmmu.machine.shootdown cimport shoot_down
from fastmmu.machine.thp cimport thp_forget, thp_split

cdef enum:
    MOST_SHARED = 0xFFFF        # further processes that share a page

cdef struct Gather:             # what one flush is for
    uint64_t begin, end         # linear addresses; begin: 0 and end: 0 where nothing changed
    bint small                  # of 4 KB pages
    bint freed                  # page tables went


cdef inline void gathered(Gather *g, uint64_t la, uint64_t nbytes) noexcept nogil:
    if not g.end:
        g.begin = la
    g.end = la + nbytes
    g.small |= nbytes != BLOCK


cdef int change_entry(GuestKernel *k, Gather *g, int change, uint64_t at, uint64_t entry, uint64_t la,
                      bint large) noexcept nogil:
    # of a page that is there
    cdef uint64_t frame = entry & (LARGE_FRAME if large else FRAME)
    if not own(k, frame, 4096):
        return vcpu_abort(k.v, ABORT_GUEST_FAULT, la)
    if change == RANGE_WRITABLE:                # no flush: a walk finds the right (pte_needs_flush)
        if entry & RW or page_shared(k, frame, large):
            return DONE_OK
        return kernel_write(k, at, entry | RW)
    if change == RANGE_READ_ONLY and not entry & RW:
        return DONE_OK
    gathered(g, la, BLOCK if large else 4096)
    if change == RANGE_READ_ONLY:
        return kernel_write(k, at, entry & ~<uint64_t> RW)
    give_page(k, frame, large)
    return kernel_write(k, at, 0)


cdef int change_table(GuestKernel *k, Gather *g, int change, uint64_t at, uint64_t pt, uint64_t la,
                      uint64_t end) noexcept nogil:
    # the part of a page table that the range has; at: of the entry that points to it
    cdef uint64_t entry = 0, first = la
    while la < end:
        if kernel_read(k, pt + ((la >> 12 & 511) << 3), &entry):
            return DONE_ABORT
        if entry & P:
            if change_entry(k, g, change, pt + ((la >> 12 & 511) << 3), entry, la, False):
                return DONE_ABORT
            k.count[pt >> 12] -= change == RANGE_UNMAP
        la += 4096
    if change == RANGE_UNMAP and not k.count[pt >> 12]:     # free_pgtables
        give(&k.free_tables, pt)
        g.freed = True
        if not g.end:                           # its pages went before
            gathered(g, first, 4096)
        return kernel_write(k, at, 0)
    return DONE_OK


cdef int ranges_change(GuestKernel *k, int change, uint64_t pages) noexcept nogil:
    cdef uint64_t la = pages & ~<uint64_t> 0xFFF, end = la + ((pages & 0xFFF) + 1 << 12), after, at = 0, entry, table
    cdef Gather g
    cdef uint32_t shift
    cdef int level
    if end >> 47 and end != 1ULL << 47:
        return vcpu_abort(k.v, ABORT_ADDRESS, end - 1)
    g.begin = g.end = 0
    g.small = g.freed = False
    k.c.munmaps += change == RANGE_UNMAP
    k.c.protects += change == RANGE_READ_ONLY
    if change == RANGE_UNMAP:
        thp_forget(k, la, end)
    if change == RANGE_READ_ONLY:
        k.shared = True
    while la < end:
        table = k.root[k.current[0]]
        entry = 0
        for level in range(4, 1, -1):
            at = table + ((la >> (9 * level + 3) & 511) << 3)
            if kernel_read(k, at, &entry):
                return DONE_ABORT
            if not entry & P or (level == 2 and entry & PS):
                break
            table = entry & FRAME
            if not own(k, table, 4096):
                return vcpu_abort(k.v, ABORT_GUEST_FAULT, la)
        after = (la | (1ULL << (9 * level + 3)) - 1) + 1 if not entry & P else (la | BLOCK - 1) + 1
        if entry & P and level == 2 and entry & PS and k.pages != PAGES_2M and (la & (BLOCK - 1) or end < after):
            if thp_split(k, la, at, entry) or kernel_read(k, at, &entry):
                return DONE_ABORT
            table = entry & FRAME
        if entry & P and level == 2 and entry & PS:
            if change_entry(k, &g, change, at, entry, la & ~<uint64_t> (BLOCK - 1), True):
                return DONE_ABORT
        elif entry & P and change_table(k, &g, change, at, table, la, min(after, end)):
            return DONE_ABORT
        la = after
    if not g.end:
        return DONE_OK
    shift = 12 if g.small else 21
    return shoot_down(k, k.current[0], g.begin, (g.end - g.begin) >> shift, shift, g.freed)


# ---- pages that are shared --------------------------------------------------------------------------------

cdef int ranges_copy(GuestKernel *k, uint64_t source, uint64_t to, int level) noexcept nogil:
    cdef uint64_t entry = 0, table = 0, frame, gfn
    cdef uint32_t i
    k.shared = True
    for i in range(256 if level == 4 else 512):
        if kernel_read(k, source + 8 * i, &entry):
            return DONE_ABORT
        if not entry & P:
            continue
        if not own(k, entry & FRAME, 4096):
            return vcpu_abort(k.v, ABORT_GUEST_FAULT, source + 8 * i)
        if level > 2 or (level == 2 and not entry & PS):
            if new_table(k, &table) or ranges_copy(k, entry & FRAME, table, level - 1):
                return DONE_ABORT
            if level == 2:
                k.count[table >> 12] = k.count[(entry & FRAME) >> 12]
            if kernel_write(k, to + 8 * i, entry & ~<uint64_t> FRAME | table):
                return DONE_ABORT
            continue
        frame = entry & (LARGE_FRAME if level == 2 else FRAME)
        for gfn in range(frame >> 12, (frame >> 12) + (512 if level == 2 else 1)):
            if k.count[gfn] == MOST_SHARED:
                return vcpu_abort(k.v, ABORT_HOST_MEMORY, frame)
            k.count[gfn] += 1
        if entry & RW and kernel_write(k, source + 8 * i, entry & ~<uint64_t> RW):
            return DONE_ABORT
        if kernel_write(k, to + 8 * i, entry & ~<uint64_t> RW):
            return DONE_ABORT
    return DONE_OK


cdef int ranges_write(GuestKernel *k, uint64_t la) noexcept nogil:
    # do_wp_page: the last that has the page may write it again, any other gets a copy
    cdef uint64_t table = k.root[k.current[0]], at = 0, entry = 0, frame, copy, i
    cdef bint large
    cdef int level
    for level in range(4, 0, -1):
        at = table + ((la >> (9 * level + 3) & 511) << 3)
        if kernel_read(k, at, &entry):
            return DONE_ABORT
        if not entry & P:
            return vcpu_abort(k.v, ABORT_GUEST_FAULT, la)
        if level == 2 and entry & PS:
            break
        table = entry & FRAME
        if not own(k, table, 4096):
            return vcpu_abort(k.v, ABORT_GUEST_FAULT, la)
    large = entry & PS != 0 and level == 2
    frame = entry & (LARGE_FRAME if large else FRAME)
    if entry & RW:
        return DONE_OK
    if not page_shared(k, frame, large):
        k.c.write_rights += 1
        return kernel_write(k, at, entry | RW | D)
    copy = new_large(k, k.current[0], la) if large and k.pages == PAGES_2M else NO_FRAME
    if large and copy == NO_FRAME:
        if k.pages == PAGES_2M:                 # no block is free for the copy
            if k.frames.policy == FRAMES_FIRST_TOUCH:
                return vcpu_abort(k.v, ABORT_GUEST_MEMORY, k.guest.nbytes)
            k.c.thp_fault_fallback += 1
        # do_huge_pmd_wp_page of Linux 5.8 and later: it is split, and the page of 4 KB is copied
        return thp_split(k, la, at, entry) or ranges_write(k, la)
    if not large:
        copy = new_data(k, la)
        if copy == NO_FRAME:
            return vcpu_abort(k.v, ABORT_GUEST_MEMORY, k.guest.nbytes)
    for i in range(512 if large else 1):
        if kernel_copied(k, frame + 4096 * i) or kernel_clear(k, copy + 4096 * i, False):
            return DONE_ABORT
    k.c.cow_copies += 1
    give_page(k, frame, large)
    if kernel_write(k, at, copy | entry & ~<uint64_t> FRAME | RW | A | D):
        return DONE_ABORT
    return shoot_down(k, k.current[0], la & ~<uint64_t> 0xFFF, 1, 21 if large else 12, False)
