"""Frames that the guest kernel gives to programs, by policy; header: frames.pxd. The specification is
fastmmu.reference.machine.frames.

    shuffled    the next free one of all frames in a random order; by the buddy allocator where 1024 in turn are in use
    buddy       as Linux' buddy allocator gives them
    reserve     PTEMagnet (Margaritov, Ustiugov, Shahab, Grot, ASPLOS 2021): the first page touched of an aligned group
                of linear pages reserves frames, one after the other and aligned, for all of them
    contiguous  contiguity-aware paging (Alverti et al., ISCA 2020): the frame as far from the page as those of its
                region before, where it is free; else the next block of 2 MB that is free is the region's new target
    of          as reserve: a group is a run of a recorded guest, and its frames are those of the recording, if free

All of them stand on one buddy allocator. A reservation's frames come back, oldest first, when no other is free.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.permutation cimport permutation_init, permuted, seeded
from fastmmu.machine.buddy cimport (
    BLOCK_FRAMES, NO_CHUNK, TOP_ORDER, buddy_fragment, buddy_free, buddy_give, buddy_init, buddy_take,
    buddy_take_at, chunk_free, order_free,
)
from fastmmu.paging.hash_table cimport hash_find, hash_free, hash_put


cdef int frames_init(Frames *f, int policy, uint64_t first, uint64_t nbytes, double unusable, uint64_t seed,
                     uint32_t group) noexcept nogil:
    # first: address of frame 0, a multiple of 2 MB as nbytes is
    cdef uint64_t n = (nbytes - first) >> 12
    memset(f, 0, sizeof(Frames))
    f.policy = policy
    f.first = first
    f.group = group
    f.groups.size = sizeof(Reserved)
    if buddy_init(&f.buddy, n):
        return -1
    if policy == FRAMES_RESERVE or policy == FRAMES_OF:
        f.holds = <uint64_t *> zeroed((n >> 6) + 1, sizeof(uint64_t))
        if f.holds == NULL:
            return -1
    permutation_init(&f.order, n, seed)
    buddy_fragment(&f.buddy, unusable, seed)
    return 0


cdef void frames_free(Frames *f) noexcept nogil:
    buddy_free(&f.buddy)
    hash_free(&f.groups)
    zeroed_free(f.holds)
    zeroed_free(f.owner)
    free(f.age)
    free(f.run)
    memset(f, 0, sizeof(Frames))


cdef inline uint64_t group_key(uint64_t process, uint64_t page) noexcept nogil:
    return <uint64_t> 1 << 63 | process << 36 | page


# ---- reservations -----------------------------------------------------------------------------------------

cdef int frames_remember(Frames *f, uint64_t key, uint64_t born) noexcept nogil:
    # behind all others; those that are gone make room. -1: no memory
    cdef uint64_t i, n = 0, room
    cdef Reserved *x
    cdef void *grown
    if f.ages == f.age_room:
        for i in range(f.age_next, f.ages):
            x = <Reserved *> hash_find(&f.groups, f.age[i].key)
            if x != NULL and x.n and x.born == f.age[i].born:
                f.age[n] = f.age[i]
                n += 1
        f.ages, f.age_next = n, 0
        if 2 * n >= f.age_room:
            room = 2 * f.age_room + 64
            grown = realloc(f.age, room * sizeof(Born))
            if grown == NULL:
                return -1
            f.age = <Born *> grown
            f.age_room = room
    f.age[f.ages].key, f.age[f.ages].born = key, born
    f.ages += 1
    return 0


cdef void release(Frames *f) noexcept nogil:
    # the frames of the oldest reservation that are not given out, one after the other, are free
    cdef Reserved *x
    cdef uint64_t i
    while f.age_next < f.ages:
        x = <Reserved *> hash_find(&f.groups, f.age[f.age_next].key)
        if x != NULL and x.n and x.born == f.age[f.age_next].born:
            for i in range(x.first, x.first + x.n):
                if held(f, i):
                    f.holds[i >> 6] &= ~(<uint64_t> 1 << (i & 63))
                    buddy_give(&f.buddy, i, 0)
            x.n = x.held = 0
            f.age_next += 1
            return
        f.age_next += 1


cdef uint64_t single(Frames *f) noexcept nogil:
    cdef uint64_t frame = buddy_take(&f.buddy, 0)
    while frame == NO_CHUNK and f.age_next < f.ages:
        release(f)
        frame = buddy_take(&f.buddy, 0)
    return frame


cdef void group_of(const Frames *f, uint64_t page, uint64_t *first, uint32_t *n, uint64_t *want) noexcept nogil:
    # of a linear page: the first of its group, how many there are, the frame that the first should have
    cdef uint64_t at, low = 0, high = f.runs, mid, end
    want[0] = NO_CHUNK
    if f.policy == FRAMES_RESERVE:
        first[0] = page >> f.group << f.group
        n[0] = <uint32_t> 1 << f.group
        return
    at = page % f.pages
    while high - low > 1:                       # the last run that begins at or before it
        mid = (low + high) >> 1
        if f.run[mid].page <= at:
            low = mid
        else:
            high = mid
    end = f.run[low + 1].page if low + 1 < f.runs else f.pages
    first[0] = f.run[low].page + ((at - f.run[low].page) & ~<uint64_t> (MOST_RESERVED - 1))
    n[0] = <uint32_t> min(end - first[0], <uint64_t> MOST_RESERVED)
    want[0] = f.run[low].frame + first[0] - f.run[low].page
    first[0] += page - at


cdef uint64_t reserved(Frames *f, uint64_t process, uint64_t page) noexcept nogil:
    cdef uint64_t first = 0, want = 0, base, i, frame
    cdef uint32_t n = 0
    cdef int order = 0
    cdef Reserved *x
    group_of(f, page, &first, &n, &want)
    x = <Reserved *> hash_find(&f.groups, group_key(process, first))
    if x == NULL or not x.n:
        base = NO_CHUNK
        if want < f.buddy.n and n <= f.buddy.n - want:
            base = want
            for i in range(want, want + n):
                if order_free(&f.buddy, i) < 0:
                    base = NO_CHUNK
                    break
        if base != NO_CHUNK:
            for i in range(n):
                buddy_take_at(&f.buddy, base + i, 0)
        else:
            while <uint32_t> 1 << order < n:
                order += 1
            base = buddy_take(&f.buddy, order)
            if base == NO_CHUNK:
                return single(f)
            for i in range(base + n, base + (<uint64_t> 1 << order)):
                buddy_give(&f.buddy, i, 0)
        x = <Reserved *> hash_put(&f.groups, group_key(process, first))
        if x == NULL or frames_remember(f, x.key, f.born):
            for i in range(1, n):               # no memory for it: no reservation
                buddy_give(&f.buddy, base + i, 0)
            return base
        x.first, x.n, x.held, x.born = base, n, n, f.born
        f.born += 1
        for i in range(base, base + n):
            f.holds[i >> 6] |= <uint64_t> 1 << (i & 63)
    frame = x.first + page - first
    if held(f, frame):
        f.holds[frame >> 6] &= ~(<uint64_t> 1 << (frame & 63))
        x.held -= 1
        if not x.held:
            x.n = 0
        return frame
    return frame if buddy_take_at(&f.buddy, frame, 0) else single(f)


# ---- contiguity -------------------------------------------------------------------------------------------

cdef uint64_t targeted(Frames *f, uint64_t process, uint64_t page, int order) noexcept nogil:
    cdef uint64_t key = group_key(process, page >> REGION_SHIFT << REGION_SHIFT), frame, i
    cdef uint64_t blocks = f.buddy.n >> TOP_ORDER
    cdef Reserved *x = <Reserved *> hash_find(&f.groups, key)
    page &= (<uint64_t> 1 << REGION_SHIFT) - 1
    if x != NULL:
        frame = x.first + page
        if frame < f.buddy.n and buddy_take_at(&f.buddy, frame, order):
            return frame
    if not f.buddy.chunks[TOP_ORDER]:
        return buddy_take(&f.buddy, order)
    i = f.cursor
    while not chunk_free(&f.buddy, TOP_ORDER, i):
        i = i + 1 if i + 1 < blocks else 0
    x = <Reserved *> hash_put(&f.groups, key)
    if x == NULL:
        return buddy_take(&f.buddy, order)
    x.first = (i << TOP_ORDER) - (page & ~<uint64_t> (BLOCK_FRAMES - 1))
    f.cursor = (i + (<uint64_t> 1 << (REGION_SHIFT - TOP_ORDER))) % blocks
    frame = x.first + page
    buddy_take_at(&f.buddy, frame, order)
    return frame


# ---- compaction: who has a frame --------------------------------------------------------------------------

cdef int frames_watch(Frames *f, double unmovable, uint64_t seed) noexcept nogil:
    # of the blocks that are fragmented at first the share `unmovable` has pages that cannot move: all in use there
    cdef uint64_t i
    f.owner = <uint64_t *> zeroed(f.buddy.n, sizeof(uint64_t))
    if f.owner == NULL:
        return -1
    for i in range(f.buddy.n):
        if <double> (seeded(seed, i >> TOP_ORDER << 10 | 1023) >> 11) / 9007199254740992.0 >= unmovable:
            if order_free(&f.buddy, i) < 0:
                f.owner[i] = OWNER_NOBODY
    f.free_next = f.buddy.n
    return 0


cdef void frames_split(Frames *f, uint64_t gpa, uint64_t la) noexcept nogil:
    cdef uint64_t i, frame = (gpa - f.first) >> 12
    if f.owner == NULL or gpa < f.first or frame + BLOCK_FRAMES > f.buddy.n:
        return
    for i in range(BLOCK_FRAMES):
        f.owner[frame + i] = ((la >> 21 << 9) + i) << 2 | OWNER_SMALL


# ---- what the guest kernel asks for -----------------------------------------------------------------------

cdef uint64_t small(Frames *f, uint64_t process, uint64_t page) noexcept nogil:
    cdef uint64_t frame, _i
    if f.policy == FRAMES_RESERVE or f.policy == FRAMES_OF:
        return reserved(f, process, page)
    if f.policy == FRAMES_CONTIGUOUS:
        return targeted(f, process, page, 0)
    for _i in range(TRIES if f.policy == FRAMES_SHUFFLED and f.buddy.spare else 0):
        frame = permuted(&f.order, f.cursor)
        f.cursor = f.cursor + 1 if f.cursor + 1 < f.buddy.n else 0
        if buddy_take_at(&f.buddy, frame, 0):
            return frame
    return buddy_take(&f.buddy, 0)


cdef uint64_t frames_small(Frames *f, uint64_t process, uint64_t la) noexcept nogil:
    cdef uint64_t frame = small(f, process, la >> 12)
    if f.owner != NULL and frame != NO_CHUNK:
        f.owner[frame] = la >> 12 << 2 | OWNER_SMALL
    return NO_CHUNK if frame == NO_CHUNK else f.first + (frame << 12)


cdef uint64_t frames_large(Frames *f, uint64_t process, uint64_t la) noexcept nogil:
    cdef uint64_t frame
    if f.policy == FRAMES_CONTIGUOUS:
        frame = targeted(f, process, la >> 21 << TOP_ORDER, TOP_ORDER)
    else:
        frame = buddy_take(&f.buddy, TOP_ORDER)
    if f.owner != NULL and frame != NO_CHUNK:
        f.owner[frame] = OWNER_LARGE
    return NO_CHUNK if frame == NO_CHUNK else f.first + (frame << 12)


cdef uint64_t frames_table(Frames *f) noexcept nogil:
    # one that stands among the programs' pages: the tables' own blocks are full
    cdef uint64_t frame = single(f)
    if f.owner != NULL and frame != NO_CHUNK:
        f.owner[frame] = OWNER_FIXED
    return NO_CHUNK if frame == NO_CHUNK else f.first + (frame << 12)


cdef void frames_give(Frames *f, uint64_t gpa, bint large) noexcept nogil:
    # of a page that the kernel had from it, and that nobody has any more
    cdef uint64_t frame = (gpa - f.first) >> 12
    if gpa < f.first or frame >= f.buddy.n or order_free(&f.buddy, frame) >= 0:
        return
    buddy_give(&f.buddy, frame, TOP_ORDER if large else 0)
