"""Which frames of guest memory are free, and for whom some are held; header: frames.pxd."""

import numpy as np

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.machine.buddy cimport ORDERS, TOP_ORDER, Buddy, at_order, buddy_empty, buddy_put, chunk_free
from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.machine.frames cimport (
    FRAMES_CONTIGUOUS, FRAMES_FIRST_TOUCH, MOST_RESERVED, Frames, Reserved, frames_remember, held,
)
from fastmmu.paging.hash_table cimport hash_find, hash_free, hash_put

from fastmmu.errors import OutOfMemoryError


cdef int keep_policy(_Archive a, Frames *f) except -1:
    # Frames of machine/frames.pxd. Of the new machine: policy first order group run. Derived: born
    # ages age_room age_next age groups holds. Elsewhere: owner migrate_next free_next deferred defer_shift
    if f.policy == FRAMES_FIRST_TOUCH:
        return 0
    a.u64("frames.cursor", &f.cursor, f.buddy.n - 1)
    keep_buddy(a, &f.buddy)
    if f.policy == FRAMES_CONTIGUOUS:
        if f.cursor >= f.buddy.n >> TOP_ORDER:
            a.refuse("no block of guest memory is the next")
        keep_targets(a, f)
    elif f.holds != NULL:
        a.same("frames.runs", f.runs)
        a.same("frames.pages", f.pages)
        keep_reserved(a, f)
    return keep_owners(a, f) if f.owner != NULL else 0


cdef int keep_owners(_Archive a, Frames *f) except -1:
    # who has each frame, and how far compaction has come
    cdef uint64_t i
    a.u64("frames.migrate_next", &f.migrate_next, f.buddy.n >> TOP_ORDER)
    a.u64("frames.free_next", &f.free_next, f.buddy.n)
    a.u32("frames.defer_shift", &f.defer_shift, 6)
    a.u32("frames.deferred", &f.deferred, 1 << f.defer_shift)
    a.sparse("frames.owner", f.owner, f.buddy.n * 8)
    for i in range(f.buddy.n if a.loading else 0):
        if f.owner[i] >> 37:
            a.refuse("a frame is of a page at no address of a program")
    return 0


cdef int keep_buddy(_Archive a, Buddy *b) except -1:
    # Buddy of machine/buddy.pxd: of each order its list. Of the new machine: n. Derived: spare next prev head chunks
    cdef uint64_t i, chunk
    cdef int order, above
    cdef uint32_t[::1] to
    cdef const uint32_t[::1] of
    if a.loading:
        buddy_empty(b)
    for order in range(ORDERS - 1, -1, -1):
        name = f"frames.free.{order}"
        if not a.loading:
            to = a.put(name, np.empty(b.chunks[order], np.uint32))
            chunk = b.head[order]
            for i in range(b.chunks[order]):
                to[i] = <uint32_t> (chunk - 1)
                chunk = b.next[at_order(b, order) + chunk - 1]
                chunk -= chunk != 0
            continue
        of = a.array(name, np.uint32)
        for i in range(<uint64_t> of.shape[0]):
            chunk = of[of.shape[0] - 1 - i]
            if chunk >= b.n >> order:
                a.refuse(f"{name} has a chunk outside guest memory")
            for above in range(order, ORDERS):
                if chunk_free(b, above, chunk >> (above - order)):
                    a.refuse(f"{name} has a chunk that is free twice")
            buddy_put(b, order, chunk)
    return 0


cdef list live(Frames *f):
    # rows of groups in the order of their age; of regions in the order of their keys
    cdef uint64_t i
    cdef Reserved *x
    found = []
    for i in range(f.groups.n):
        x = <Reserved *> (f.groups.slots + i * f.groups.size)
        if x.key and (x.n or f.holds == NULL):
            found.append((x.born, x.key, x.first, x.n))
    return sorted(found)


cdef int keep_targets(_Archive a, Frames *f) except -1:
    # Reserved of machine/frames.pxd, of a region: key, first. Of a group: born n held
    cdef uint64_t i
    cdef Reserved *x
    cdef const uint64_t[::1] of, first
    if not a.loading:
        rows = live(f)
        a.put("frames.key", np.array([row[1] for row in rows], np.uint64))
        a.put("frames.first", np.array([row[2] for row in rows], np.uint64))
        return 0
    of, first = a.array("frames.key", np.uint64), a.array("frames.first", np.uint64)
    hash_free(&f.groups)
    for i in range(<uint64_t> of.shape[0]):
        if first.shape[0] != of.shape[0] or not of[i] >> 63 or first[i] & 511:
            a.refuse("a region of linear addresses has no target")
        x = <Reserved *> hash_put(&f.groups, of[i])
        if x == NULL:
            raise OutOfMemoryError("no memory for the guest's frames")
        x.first = first[i]
    return 0


cdef int keep_reserved(_Archive a, Frames *f) except -1:
    # Born of machine/frames.pxd: key born, by the order of rows
    cdef uint64_t i, j
    cdef Reserved *x
    cdef const uint64_t[::1] of, first, n
    if not a.loading:
        rows = live(f)
        a.put("frames.key", np.array([row[1] for row in rows], np.uint64))
        a.put("frames.first", np.array([row[2] for row in rows], np.uint64))
        a.put("frames.n", np.array([row[3] for row in rows], np.uint64))
        a.sparse("frames.holds", f.holds, ((f.buddy.n >> 6) + 1) * 8)
        return 0
    of, first, n = a.array("frames.key", np.uint64), a.array("frames.first", np.uint64), a.array("frames.n", np.uint64)
    hash_free(&f.groups)
    f.ages = f.age_next = f.born = 0
    a.sparse("frames.holds", f.holds, ((f.buddy.n >> 6) + 1) * 8)
    for i in range(<uint64_t> of.shape[0]):
        if first.shape[0] != of.shape[0] or n.shape[0] != of.shape[0] or not of[i] >> 63:
            a.refuse("a reservation has no frames")
        if not 0 < n[i] <= MOST_RESERVED or first[i] >= f.buddy.n or n[i] > f.buddy.n - first[i]:
            a.refuse("a reservation has frames outside guest memory")
        if hash_find(&f.groups, of[i]) != NULL:
            a.refuse("pages have two reservations")
        x = <Reserved *> hash_put(&f.groups, of[i])
        if x == NULL:
            raise OutOfMemoryError("no memory for the guest's frames")
        x.first, x.n, x.born = first[i], <uint32_t> n[i], f.born
        for j in range(x.first, x.first + x.n):
            x.held += held(f, j)
        if not x.held:
            a.refuse("a reservation holds nothing")
        if frames_remember(f, of[i], f.born):
            raise OutOfMemoryError("no memory for the guest's frames")
        f.born += 1
    return 0
