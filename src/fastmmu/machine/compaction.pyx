"""Compaction of guest memory, as mm/compaction.c and mm/migrate.c of Linux 6.1; header: compaction.pxd. The
specification is fastmmu.reference.machine.compaction.

    blocks, from the first up: is all of it movable? ──► each page: unmap, flush, copy, map ──► the block is free
    frames, from the last down: is it free? ───────────────────────────────────────┘

The two scanners go on where they were. Where they meet, compaction has failed, both begin anew, and the next 1, 2, ...
64 times are not tried (defer_compaction). A block is moved as a whole or not at all, as a direct compaction of order 9
skips the rest of a block with a page that cannot move (skip_on_failure).
"""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport FRAME, PS, P
from fastmmu.cpu.vcpu cimport DONE_ABORT, DONE_OK
from fastmmu.machine.buddy cimport TOP_ORDER, buddy_give, buddy_take_at, order_free
from fastmmu.machine.frames cimport OWNER_NOBODY, OWNER_SMALL, Frames, held
from fastmmu.machine.kernel_memory cimport kernel_clear, kernel_copied, kernel_read, kernel_write, new_large, own
from fastmmu.machine.kernel_state cimport NO_FRAME, GuestKernel
from fastmmu.machine.shootdown cimport shoot_down
from fastmmu.paging.memory cimport mem_read64

cdef enum:
    MOST_DEFERRED = 6           # COMPACT_MAX_DEFER_SHIFT

cdef struct Targets:            # free frames for the pages of a block
    uint64_t[512] frame
    uint64_t next               # the scanner of free frames, behind them


# ---- who has a page ---------------------------------------------------------------------------------------

cdef bint last_entry(const GuestKernel *k, uint32_t process, uint64_t la, uint64_t *at, uint64_t *entry,
                     int *level) noexcept nogil:
    # where a process's way to la ends: the first entry that is absent, or maps a page. The kernel has a reverse map,
    # and reads nothing to find it
    cdef uint64_t table = k.root[process]
    level[0] = 4
    while table:
        at[0] = table + ((la >> (9 * level[0] + 3) & 511) << 3)
        entry[0] = mem_read64(&k.guest, at[0])
        if level[0] == 1 or not entry[0] & P or (level[0] == 2 and entry[0] & PS):
            return True
        table = entry[0] & FRAME
        level[0] -= 1
        if not own(k, table, 4096):
            return False
    return False


cdef bint entry_of(const GuestKernel *k, uint32_t process, uint64_t la, uint64_t frame, uint64_t *at,
                   bint *large) noexcept nogil:
    # the entry by which a process has the 4 KB at this address of guest memory, if it does (rmap_walk: all that share a
    # page have it at one linear address)
    cdef uint64_t entry = 0
    cdef int level = 0
    if not last_entry(k, process, la, at, &entry, &level) or not entry & P:
        return False
    large[0] = level == 2
    if large[0]:
        return (entry & FRAME & ~<uint64_t> 0x1FFFFF) + (la & 0x1FF000) == frame
    return entry & FRAME == frame


cdef bint waits(const GuestKernel *k, uint32_t process, uint64_t la, uint64_t frame, uint64_t *at) noexcept nogil:
    # whether the process has a migration entry for the page
    cdef uint64_t entry = 0
    cdef int level = 0
    return (last_entry(k, process, la, at, &entry, &level) and level == 1 and not entry & P
            and entry & FRAME == frame)


cdef bint movable(const GuestKernel *k, uint64_t frame) noexcept nogil:
    # a frame of programs, in use: of nobody known that can be moved, or mapped by pages of 4 KB alone
    cdef const Frames *f = &k.frames
    cdef uint64_t owner = f.owner[frame], at = 0, gpa = f.first + (frame << 12)
    cdef uint32_t process, n = 0
    cdef bint large = False
    if f.holds != NULL and held(f, frame):
        return False
    if owner == OWNER_NOBODY:
        return True
    if owner & 3 != OWNER_SMALL:
        return False
    for process in range(k.n_roots):
        if entry_of(k, process, owner >> 2 << 12, gpa, &at, &large):
            if large:
                return False
            n += 1
    return n == <uint32_t> k.count[gpa >> 12] + 1


# ---- the scanners -----------------------------------------------------------------------------------------

cdef uint64_t to_move(const GuestKernel *k, uint64_t block) noexcept nogil:
    # frames in use of a block that can be made free; 0: it cannot
    cdef const Frames *f = &k.frames
    cdef uint64_t frame, n = 0
    for frame in range(block << TOP_ORDER, block + 1 << TOP_ORDER):
        if order_free(&f.buddy, frame) < 0:
            if not movable(k, frame):
                return 0
            n += 1
    return n


cdef bint find_targets(const Frames *f, uint64_t block, uint64_t n, Targets *t) noexcept nogil:
    # free frames behind the block, from the last down; False: the scanners meet first
    cdef uint64_t found = 0
    t.next = f.free_next
    while found < n:
        if t.next <= (block + 1) << TOP_ORDER:
            return False
        t.next -= 1
        if order_free(&f.buddy, t.next) >= 0:
            t.frame[found] = t.next
            found += 1
    return True


cdef int migrate(GuestKernel *k, uint64_t frame, uint64_t to) noexcept nogil:
    # try_to_migrate, folio_copy, remove_migration_ptes
    cdef Frames *f = &k.frames
    cdef uint64_t owner = f.owner[frame], old = f.first + (frame << 12), new = f.first + (to << 12)
    cdef uint64_t la = owner >> 2 << 12, at = 0, entry = 0
    cdef uint32_t process
    cdef bint large = False
    buddy_take_at(&f.buddy, to, 0)
    f.owner[to] = owner
    if owner != OWNER_NOBODY:
        for process in range(k.n_roots):
            if entry_of(k, process, la, old, &at, &large):
                if kernel_read(k, at, &entry) or kernel_write(k, at, entry & ~P):   # a migration entry
                    return DONE_ABORT
                if shoot_down(k, process, la, 1, 12, False):
                    return DONE_ABORT
    if kernel_copied(k, old) or kernel_clear(k, new, False):
        return DONE_ABORT
    if owner != OWNER_NOBODY:
        for process in range(k.n_roots):
            if waits(k, process, la, old, &at):
                if kernel_read(k, at, &entry) or kernel_write(k, at, entry & ~FRAME | new | P):
                    return DONE_ABORT
    k.count[new >> 12] = k.count[old >> 12]
    k.count[old >> 12] = 0
    buddy_give(&f.buddy, frame, 0)
    k.c.pgmigrate_success += 1
    return DONE_OK


cdef int compact_zone(GuestKernel *k, bint *made) noexcept nogil:
    # until a block is free, or the scanners meet
    cdef Frames *f = &k.frames
    cdef Targets t
    cdef uint64_t block, n, i = 0, frame
    made[0] = False
    while f.migrate_next < f.buddy.n >> TOP_ORDER:
        block = f.migrate_next
        n = to_move(k, block)
        if not n:
            f.migrate_next += 1
            continue
        if not find_targets(f, block, n, &t):
            break
        for frame in range(block << TOP_ORDER, block + 1 << TOP_ORDER):
            if order_free(&f.buddy, frame) < 0:
                if migrate(k, frame, t.frame[i]):
                    return DONE_ABORT
                i += 1
        f.free_next = t.next
        f.migrate_next += 1
        f.deferred = f.defer_shift = 0
        made[0] = True
        return DONE_OK
    f.migrate_next = 0
    f.free_next = f.buddy.n
    f.deferred = 0
    f.defer_shift = min(f.defer_shift + 1, <uint32_t> MOST_DEFERRED)
    return DONE_OK


cdef bint put_off(Frames *f) noexcept nogil:
    # compaction_deferred
    f.deferred += 1
    if f.deferred >= <uint32_t> 1 << f.defer_shift:
        f.deferred = <uint32_t> 1 << f.defer_shift
        return False
    return True


cdef int compact_directly(GuestKernel *k, uint32_t process, uint64_t la, uint64_t *frame) noexcept nogil:
    # __alloc_pages_direct_compact
    cdef bint made = False
    frame[0] = NO_FRAME
    if put_off(&k.frames):
        return DONE_OK
    k.c.compact_stall += 1
    if compact_zone(k, &made):
        return DONE_ABORT
    k.c.compact_success += made
    k.c.compact_fail += not made
    if made:
        frame[0] = new_large(k, process, la)
    return DONE_OK


cdef int compact_behind(GuestKernel *k) noexcept nogil:
    cdef bint made = False
    return <int> DONE_OK if put_off(&k.frames) else compact_zone(k, &made)
