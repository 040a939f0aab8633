"""Frames of guest memory, given out and taken back by the guest kernel; header: kernel_memory.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memset

from fastmmu.arch.types cimport ACC_R, ACC_W
from fastmmu.cpu.vcpu cimport ABORT_GUEST_MEMORY, DONE_OK, vcpu_abort, vcpu_access, vcpu_touches
from fastmmu.machine.frames cimport FRAMES_FIRST_TOUCH, frames_give, frames_large, frames_small, frames_table
from fastmmu.machine.kernel_state cimport BLOCK, DIRECT_MAP, NO_FRAME, FrameList, GuestKernel
from fastmmu.paging.huge_pages cimport BEGUN, huge_ahead, huge_begun


# ---- frames -----------------------------------------------------------------------------------------------

cdef uint64_t take(FrameList *list) noexcept nogil:
    if not list.n:
        return NO_FRAME
    list.n -= 1
    return list.frame[list.n]


cdef void give(FrameList *list, uint64_t frame) noexcept nogil:
    cdef void *grown
    cdef uint32_t room
    if list.n == list.room:
        room = 2 * list.room + 64
        grown = realloc(list.frame, room * sizeof(uint64_t))
        if grown == NULL:
            return
        list.frame = <uint64_t *> grown
        list.room = room
    list.frame[list.n] = frame
    list.n += 1


cdef void give_page(GuestKernel *k, uint64_t frame, bint large) noexcept nogil:
    # it is free when no other process shares it; where a trace placed it, it is no page of the kernel's own
    cdef uint64_t i
    if (k.high and frame < k.next_block) or not own(k, frame, BLOCK if large else 4096):
        return
    if large and page_shared(k, frame, True):   # by others whole, or in part
        for i in range(512):
            give_page(k, frame + 4096 * i, False)
        return
    if k.count[frame >> 12]:
        k.count[frame >> 12] -= 1
    elif k.frames.policy != FRAMES_FIRST_TOUCH:
        frames_give(&k.frames, frame, large)
    else:
        give(&k.free_2m if large else &k.free_4k, frame)


cdef uint64_t new_block(GuestKernel *k) noexcept nogil:
    cdef uint64_t block = k.next_block
    if k.high:
        if block < max(k.placed.end, <uint64_t> BLOCK) + BLOCK:
            return NO_FRAME
        k.next_block -= BLOCK
        return k.next_block
    if block + BLOCK > k.frames.first:
        return NO_FRAME
    k.next_block += BLOCK
    return block


cdef uint64_t new_frame(GuestKernel *k, FrameList *freed, uint64_t *next, uint64_t *end) noexcept nogil:
    cdef uint64_t frame = take(freed)
    if frame != NO_FRAME:
        return frame
    if next[0] == end[0]:
        next[0] = new_block(k)
        if next[0] == NO_FRAME:
            end[0] = NO_FRAME
            return NO_FRAME
        end[0] = next[0] + BLOCK
    frame = next[0]
    next[0] += 4096
    return frame


cdef uint64_t new_data(GuestKernel *k, uint64_t la) noexcept nogil:
    if k.frames.policy != FRAMES_FIRST_TOUCH:
        return frames_small(&k.frames, k.current[0], la)
    return new_frame(k, &k.free_4k, &k.data_next, &k.data_end)


cdef uint64_t new_large(GuestKernel *k, uint32_t process, uint64_t la) noexcept nogil:
    cdef uint64_t frame
    if k.frames.policy != FRAMES_FIRST_TOUCH:
        return frames_large(&k.frames, process, la)
    frame = take(&k.free_2m)
    return frame if frame != NO_FRAME else new_block(k)


# ---- memory as the kernel sees it -------------------------------------------------------------------------

cdef int kernel_clear(GuestKernel *k, uint64_t gpa, bint table) noexcept nogil:
    # one access to the page; only tables are cleared in fact, programs' data is not simulated
    cdef uint64_t hpa = 0
    cdef int outcome = DONE_OK
    if not k.silent:
        k.v.c.kernel_accesses += 1
        k.v.store_bytes = 4096
        outcome = vcpu_access(k.v, DIRECT_MAP + gpa, ACC_W, False, &hpa)
        k.v.store_bytes = 0
        if outcome == DONE_OK:
            vcpu_touches(k.v, hpa, 4096, ACC_W)
        outcome = settled(outcome)
    if table and outcome == DONE_OK:
        memset(k.guest.base + gpa, 0, 4096)
    return outcome


cdef int new_table(GuestKernel *k, uint64_t *table) noexcept nogil:
    table[0] = new_frame(k, &k.free_tables, &k.table_next, &k.table_end)
    if table[0] == NO_FRAME and k.frames.policy != FRAMES_FIRST_TOUCH:
        table[0] = frames_table(&k.frames)
    if table[0] == NO_FRAME:
        return vcpu_abort(k.v, ABORT_GUEST_MEMORY, k.guest.nbytes)
    if not table[0] & (BLOCK - 1) and table[0] != BLOCK:
        huge_ahead(&k.guest, table[0])          # tables fill it, as they filled the first block
    elif table[0] == BLOCK + (BEGUN << 12):
        huge_begun(&k.guest, BLOCK)
    k.count[table[0] >> 12] = 0
    return kernel_clear(k, table[0], True)


cdef int kernel_copied(GuestKernel *k, uint64_t gpa) noexcept nogil:
    cdef uint64_t hpa = 0
    cdef int outcome
    k.v.c.kernel_accesses += 1
    outcome = vcpu_access(k.v, DIRECT_MAP + gpa, ACC_R, False, &hpa)
    if outcome == DONE_OK:
        vcpu_touches(k.v, hpa, 4096, ACC_R)
    return settled(outcome)
