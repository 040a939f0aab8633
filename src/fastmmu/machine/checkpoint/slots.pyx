"""Memory slots, their logs, and what the host has behind their pages, written and read. Header: slots.pxd."""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from fastmmu._zeroed cimport zeroed
from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.mmu.memslots cimport (
    HOST_CLEAN, HOST_SHARED, MAX_SLOTS, Memslot, Memslots, Recency, Ring, host_holds, slots_delete,
)

from fastmmu.errors import OutOfMemoryError


cdef int keep_slots(_Archive a, Memslots *s) except -1:
    # Memslots of mmu/memslots.pxd. Of the new machine: n base frames limit. Elsewhere: slot ring recency group groups
    cdef int i
    cdef uint32_t generation = s.generation
    a.under("slots")
    a.same("n", s.n)
    a.same("base", s.base)
    a.same("frames", s.frames)
    a.same("limit", s.limit)
    a.number("last", &s.last, 0, MAX_SLOTS - 1)
    a.u32("generation", &generation)
    a.u64("resident", &s.resident)
    a.u64("hand", &s.hand)
    a.u64("sequence", &s.sequence)
    a.sparse("written", s.written, ((s.frames >> 6) + 1) * sizeof(uint64_t))
    keep_groups(a, s)
    keep_ring(a, s.ring)
    for i in range(s.n):
        keep_slot(a, s, i)
    s.generation = generation
    keep_recency(a, s)
    return 0


cdef int keep_groups(_Archive a, Memslots *s) except -1:
    # pages that share one: how many are left of each group
    cdef const uint32_t[::1] found
    a.u32("groups", &s.groups, 1 << 26)
    if a.loading:
        found = a.array("group", np.uint32, s.groups)
        free(s.group)
        s.group = <uint32_t *> malloc(max(1, s.groups) * sizeof(uint32_t))
        if s.group == NULL:
            s.groups = 0
            raise OutOfMemoryError("no memory for the groups of merged pages")
        if s.groups:
            memcpy(s.group, &found[0], s.groups * sizeof(uint32_t))
        return 0
    groups = np.zeros(s.groups, np.uint32)
    words_out(groups, s.group, s.groups)
    a.put("group", groups)
    return 0


cdef int words_out(uint32_t[::1] to, const uint32_t *p, uint64_t n) except -1:
    if n:
        memcpy(&to[0], p, 4 * n)
    return 0


cdef int keep_ring(_Archive a, Ring *r) except -1:
    # Ring of mmu/memslots.pxd
    cdef uint32_t size = r.size, i
    a.u32("ring.size", &size, 65536)
    if a.loading and size != r.size:
        free(r.entry)
        r.size = 0
        r.entry = <uint64_t *> calloc(max(1, size), sizeof(uint64_t))
        if r.entry == NULL:
            raise OutOfMemoryError("no memory for the ring of a vCPU")
        r.size = size
    a.u32("ring.used", &r.used, r.size)
    a.u32("ring.room", &r.room, r.size)
    a.plain("ring.entry", r.entry, r.used * sizeof(uint64_t))
    for i in range(r.used if a.loading else 0):
        if r.entry[i] >> 48 >= MAX_SLOTS:
            a.refuse("the ring of a vCPU names a slot that there is not")
    return 0


cdef int keep_slot(_Archive a, Memslots *s, int i) except -1:
    # Memslot of mmu/memslots.pxd. Of the new machine: base_gfn hpa number readonly huge private emulated device
    cdef Memslot *x = &s.slot[i]
    cdef bint host = x.host != NULL, logged = x.dirty != NULL, rings = x.ring != NULL, merged = x.group != NULL
    cdef uint64_t npages = x.npages
    a.under(f"slot{i}")
    a.u64("npages", &npages)
    if a.loading and not npages and x.npages:
        slots_delete(s, i)
    if npages != x.npages:
        a.refuse(f"slot {i} has {int(npages)} pages, and a machine of this configuration {int(x.npages)}")
    a.same("hpa", x.hpa)
    a.same("base_gfn", x.base_gfn)
    a.flag("dirty", &logged)
    a.flag("ring", &rings)
    a.flag("manual", &x.manual)
    a.flag("initial", &x.initial)
    a.u32("invalidating", &x.invalidating)
    a.u64("away", &x.away)
    a.u64("away_end", &x.away_end)
    a.same("host", x.host != NULL)
    a.same("whole", x.whole != NULL)
    a.flag("group", &merged)
    if a.loading:
        if rings and (not logged or not s.ring.size):
            a.refuse(f"slot {i} is logged to a ring, and there is none")
        x.ring = &s.ring if rings else NULL
        if logged and x.dirty == NULL:
            x.dirty = <uint64_t *> zeroed((x.npages >> 6) + 1, sizeof(uint64_t))
        if merged and x.group == NULL:
            x.group = <uint32_t *> zeroed(x.npages + 1, sizeof(uint32_t))
        if (logged and x.dirty == NULL) or (merged and x.group == NULL):
            raise OutOfMemoryError(f"no memory for the log of slot {i}")
    if logged:
        a.sparse("dirty", x.dirty, ((x.npages >> 6) + 1) * sizeof(uint64_t))
    if x.whole != NULL:
        a.sparse("whole", x.whole, ((x.npages >> 15) + 1) * sizeof(uint64_t))
    if host:
        a.sparse("host", x.host, x.npages)
    if merged:
        a.sparse("group", x.group, (x.npages + 1) * sizeof(uint32_t))
    if a.loading and host:
        check_host(a, s, x)
    return 0


cdef int check_host(_Archive a, const Memslots *s, const Memslot *x) except -1:
    cdef uint64_t page
    for page in range(x.npages):
        if x.host[page] > HOST_CLEAN:
            a.refuse(f"the host has nothing of kind {int(x.host[page])} behind a page")
        if x.host[page] == HOST_SHARED and (x.group == NULL or x.group[page] >= s.groups):
            a.refuse("a merged page is of no group")
    return 0


# ---- the order in which the host saw pages used -----------------------------------------------------------------

cdef int keep_recency(_Archive a, Memslots *s) except -1:
    # Recency of mmu/memslots.pxd. Derived: older newer oldest newest n, from the frames in their order
    cdef Recency *r = &s.recency
    a.under("recency")
    a.same("kept", r.older != NULL)
    a.u32("generation", &r.generation)
    if r.older == NULL:
        return 0
    if a.loading:
        order = a.array("frame", np.uint64)
        seen = a.array("seen", np.uint32, len(order))
        recency_in(a, s, order, seen)
        return 0
    order, seen = np.zeros(r.n, np.uint64), np.zeros(r.n, np.uint32)
    recency_out(r, order, seen)
    a.put("frame", order)
    a.put("seen", seen)
    return 0


cdef int recency_out(const Recency *r, uint64_t[::1] order, uint32_t[::1] seen) except -1:
    cdef uint64_t i, at = r.oldest
    for i in range(r.n):
        order[i] = at - 1
        seen[i] = r.seen[at - 1]
        at = r.newer[at - 1]
    return 0


cdef int recency_in(_Archive a, Memslots *s, const uint64_t[::1] order, const uint32_t[::1] seen) except -1:
    # the pages that the host holds, each once
    cdef Recency *r = &s.recency
    cdef uint64_t i, n = order.shape[0], frame, held = 0, page
    cdef uint8_t[::1] known
    cdef int k
    known = np.zeros(s.frames + 1, np.uint8)
    for k in range(s.n):
        for page in range(s.slot[k].npages if s.slot[k].host != NULL else 0):
            if host_holds(s.slot[k].host[page]):
                known[(s.slot[k].hpa - s.base >> 12) + page] = 1
                held += 1
    if held != n:
        a.refuse("the order of use has more pages than the host holds, or fewer")
    r.oldest = r.newest = r.n = 0
    for i in range(n):
        frame = order[i]
        if frame >= s.frames or not known[frame]:
            a.refuse("the order of use has a page twice, or one that the host does not hold")
        known[frame] = 0
        r.older[frame] = r.newest
        r.newer[frame] = 0
        r.seen[frame] = seen[i]
        if r.newest:
            r.newer[r.newest - 1] = frame + 1
        else:
            r.oldest = frame + 1
        r.newest = frame + 1
    r.n = n
    return 0
