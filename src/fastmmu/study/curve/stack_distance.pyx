"""Kernel of the stack distances; header: study/curve/stack_distance.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove, memset

cdef extern from *:
    """
    #define fm_popcount(x) __builtin_popcountll(x)
    """
    uint32_t popcount "fm_popcount"(uint64_t) noexcept nogil

cdef enum:
    MOST_SLOTS = 1 << 30        # a slot has 32 bits

cdef uint64_t HOLE = ~(<uint64_t> 0)


# ---- a list per set -------------------------------------------------------------------------------------------

cdef inline uint32_t search(const List *l, const uint64_t *k, uint32_t n, uint64_t key, uint32_t *hole) noexcept nogil:
    # its place, n: none; the topmost hole above it, n: none
    cdef uint32_t at = 0
    hole[0] = n
    while at < n and k[at] != key:
        if k[at] == HOLE and hole[0] == n:
            hole[0] = at
        at += 1
    return at


cdef inline void to_top(List *l, uint64_t s, uint32_t at, uint32_t hole, uint64_t key) noexcept nogil:
    # from its place, or nowhere, to the top
    cdef uint64_t *k = l.key + s * l.depth
    cdef uint32_t n = l.n[s]
    if hole < at:
        if at < n:
            k[at] = HOLE
        at = hole
    elif at == n and n < l.depth:
        l.n[s] += 1
    elif at == n:
        at -= 1
    memmove(k + 1, k, 8 * at)
    k[0] = key


cdef uint32_t list_access(List *l, uint64_t key) noexcept nogil:
    cdef uint64_t s = key & (l.sets - 1)
    cdef uint32_t n = l.n[s], hole, at = search(l, l.key + s * l.depth, n, key, &hole)
    l.hist[at if at < n else l.depth] += 1
    to_top(l, s, at, hole, key)
    return at if at < n else l.depth + 1 if hole < n else l.depth if n < l.depth else l.depth + 2


cdef uint32_t list_follow(List *l, uint64_t key, bint dead, bint filled) noexcept nogil:
    cdef uint64_t s = key & (l.sets - 1)
    cdef uint64_t *k = l.key + s * l.depth
    cdef uint32_t n = l.n[s], hole, at = search(l, k, n, ANYBODY - 1 if dead else key, &hole)
    l.hist[l.depth] -= 1                        # where the part counted it
    l.hist[at if at < n else l.depth] += 1
    if not filled:
        to_top(l, s, at, hole, ANYBODY)
    elif at < n:
        k[at] = HOLE
    return at if at < n else l.depth


cdef void list_flush(List *l) noexcept nogil:
    memset(l.n, 0, 4 * <uint64_t> l.sets)


cdef bint list_new(List *l, uint32_t sets, uint32_t depth) noexcept nogil:
    l.sets = sets
    l.depth = depth
    l.key = <uint64_t *> calloc(<uint64_t> sets * depth, 8)
    l.n = <uint32_t *> calloc(sets, 4)
    l.hist = <uint64_t *> calloc(depth + 1, 8)
    return l.key != NULL and l.n != NULL and l.hist != NULL


cdef void list_free(List *l) noexcept nogil:
    free(l.key)
    free(l.n)
    free(l.hist)


cdef void list_invalidate(List *l, uint64_t key) noexcept nogil:
    cdef uint64_t s = key & (l.sets - 1)
    cdef uint64_t *k = l.key + s * l.depth
    cdef uint32_t i
    for i in range(l.n[s]):
        if k[i] == key:
            k[i] = HOLE
            return


# ---- the tree: slots and their number -------------------------------------------------------------------------

cdef inline void add(Tree *t, uint64_t slot, int by) noexcept nogil:
    cdef uint64_t i = (slot >> 6) + 1
    t.word[slot >> 6] ^= <uint64_t> 1 << (slot & 63)
    t.used += by
    while i <= t.cap >> 6:
        t.fenwick[i] += by
        i += i & (~i + 1)


cdef inline uint64_t from_slot(const Tree *t, uint64_t slot) noexcept nogil:
    # slots in use at or above this one
    cdef uint64_t i = slot >> 6, n = 0
    n = popcount(t.word[i] & ((<uint64_t> 1 << (slot & 63)) - 1))
    while i:
        n += t.fenwick[i]
        i &= i - 1
    return t.used - n


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    x = (x ^ x >> 31) * <uint64_t> 0x9E3779B97F4A7C15
    x = (x ^ x >> 29) * <uint64_t> 0xBF58476D1CE4E5B9
    return x ^ x >> 32


cdef inline uint64_t find_page(const Tree *t, uint64_t key) noexcept nogil:
    # its place in the hash table, or the free one where it would stand
    cdef uint64_t i = mix(key) & t.mask
    while t.page[i] and t.page[i] != key + 1:
        i = (i + 1) & t.mask
    return i


cdef bint more_pages(Tree *t) noexcept nogil:
    cdef uint64_t *page = t.page
    cdef uint32_t *at = t.at
    cdef uint64_t i, j, size = t.mask + 1
    t.page = <uint64_t *> calloc(2 * size, 8)
    t.at = <uint32_t *> calloc(2 * size, 4)
    if t.page == NULL or t.at == NULL:
        free(t.page)
        free(t.at)
        t.page = page
        t.at = at
        return False
    t.mask = 2 * size - 1
    for i in range(size):
        if page[i]:
            j = find_page(t, page[i] - 1)
            t.page[j] = page[i]
            t.at[j] = at[i]
    free(page)
    free(at)
    return True


cdef bint new_slots(Tree *t, uint64_t cap) noexcept nogil:
    # Slots are numbered anew, from 1 on and in order, into arrays for `cap`; number 0 is never used.
    cdef uint64_t *word = <uint64_t *> calloc(cap >> 6, 8)
    cdef uint32_t *fenwick = <uint32_t *> calloc((cap >> 6) + 1, 4)
    cdef uint64_t *slot = <uint64_t *> calloc(cap, 8)
    cdef uint64_t i, j, n = 1
    if word == NULL or fenwick == NULL or slot == NULL:
        free(word)
        free(fenwick)
        free(slot)
        return False
    t.n_holes = 0
    memset(t.at, 0, 4 * (t.mask + 1))           # also of pages that were flushed
    for i in range(t.first, t.next):
        if t.word[i >> 6] >> (i & 63) & 1:
            slot[n] = t.slot[i]
            word[n >> 6] |= <uint64_t> 1 << (n & 63)
            if t.slot[i] == HOLE:
                t.hole[t.n_holes] = n
                t.n_holes += 1
            elif t.slot[i] != ANYBODY:
                t.at[find_page(t, t.slot[i])] = n
            n += 1
    for i in range(t.n_holes // 2):             # the largest first is a heap
        j = t.hole[i]
        t.hole[i] = t.hole[t.n_holes - 1 - i]
        t.hole[t.n_holes - 1 - i] = j
    for i in range(1, (cap >> 6) + 1):
        fenwick[i] += popcount(word[i - 1])
        j = i + (i & (~i + 1))
        if j <= cap >> 6:
            fenwick[j] += fenwick[i]
    free(t.word)
    free(t.fenwick)
    free(t.slot)
    t.word = word
    t.fenwick = fenwick
    t.slot = slot
    t.cap = cap
    t.first = 1
    t.next = n
    t.used = n - 1
    return True


cdef void push(Tree *t, uint64_t key) noexcept nogil:
    # the most recent one in the tree, just out of the front
    cdef uint64_t i
    if t.next == t.cap:
        if t.cap > MOST_SLOTS or not new_slots(t, t.cap if 2 * t.used < t.cap else 2 * t.cap):
            t.failed = True
            return
    if key == HOLE:
        push_hole(t, t.next)
    elif key != ANYBODY:
        i = find_page(t, key)
        t.at[i] = t.next
    t.slot[t.next] = key
    add(t, t.next, 1)
    t.next += 1


cdef void push_hole(Tree *t, uint64_t slot) noexcept nogil:
    cdef uint64_t i, size = 2 * t.max_holes
    cdef uint32_t *hole
    if t.n_holes == t.max_holes:
        hole = <uint32_t *> realloc(t.hole, 4 * size)
        if hole == NULL:
            t.failed = True
            return
        t.hole = hole
        t.max_holes = size
    i = t.n_holes
    t.n_holes += 1
    while i and t.hole[(i - 1) // 2] < slot:
        t.hole[i] = t.hole[(i - 1) // 2]
        i = (i - 1) // 2
    t.hole[i] = slot


cdef void pop_hole(Tree *t) noexcept nogil:
    cdef uint64_t i = 0, child
    cdef uint32_t last
    t.n_holes -= 1
    last = t.hole[t.n_holes]
    while True:
        child = 2 * i + 1
        if child >= t.n_holes:
            break
        if child + 1 < t.n_holes and t.hole[child + 1] > t.hole[child]:
            child += 1
        if t.hole[child] <= last:
            break
        t.hole[i] = t.hole[child]
        i = child
    t.hole[i] = last


# ---- the tree: accesses ---------------------------------------------------------------------------------------

cdef inline void to_front(Tree *t, uint32_t at, uint64_t key) noexcept nogil:
    memmove(t.front + 1, t.front, 8 * at)
    t.front[0] = key


cdef inline uint64_t known_page(Tree *t, uint64_t key) noexcept nogil:
    # its place in the hash table, where it stands from now on
    cdef uint64_t i = find_page(t, key)
    if not t.page[i]:
        if 2 * t.pages >= t.mask:
            if not more_pages(t):
                t.failed = True
                return i
            i = find_page(t, key)
        t.page[i] = key + 1
        t.pages += 1
    return i


cdef bint to_top_of_tree(Tree *t, uint64_t slot, uint32_t hole, uint64_t key) noexcept nogil:
    # of a page that is at a slot, or nowhere; hole: the topmost one in the front. Whether it took the place of one.
    cdef uint64_t i
    cdef uint32_t n = t.n_front
    cdef bint filled = False
    if hole < n:                                # in the front: what is below stays, with a hole where the page was
        to_front(t, hole, key)
        t.holes_in_front -= 1
        if slot:
            t.slot[slot] = HOLE
            push_hole(t, slot)
        return True
    if n < FRONT:                               # nothing in the tree
        t.n_front = n + 1
        to_front(t, n, key)
        return False
    if t.n_holes and t.hole[0] > slot:
        filled = True
        i = t.hole[0]
        pop_hole(t)
        add(t, i, -1)
        if slot:
            t.slot[slot] = HOLE
            push_hole(t, slot)
    elif slot:
        add(t, slot, -1)
    i = t.front[FRONT - 1]
    to_front(t, FRONT - 1, key)
    push(t, i)
    return filled


cdef inline uint32_t in_front(const Tree *t, uint64_t key, uint32_t *hole) noexcept nogil:
    # its place in the front, and the topmost hole above it; n_front: none
    cdef uint32_t at = 0, n = t.n_front
    hole[0] = n
    if t.holes_in_front:
        while at < n and t.front[at] != key:
            if t.front[at] == HOLE and hole[0] == n:
                hole[0] = at
            at += 1
    else:
        while at < n and t.front[at] != key:
            at += 1
    return at


cdef int tree_access(Tree *t, uint64_t key) noexcept nogil:
    cdef uint64_t hash, distance = 0, slot, i
    cdef uint64_t *hist
    cdef uint32_t at, n = t.n_front, hole
    cdef bint filled
    if not t.threshold or t.failed:
        return TREE_FOUND
    hash = mix(key)
    if hash >> 32 >= t.threshold:
        return TREE_FOUND
    hist = t.hist + (hash >> 29 & 7) * (t.limit + 1)
    at = in_front(t, key, &hole)
    if at < n:
        distance = at + 1
        hist[distance if distance <= t.limit else 0] += 1
        if hole < at:
            t.front[at] = HOLE                  # holes_in_front stays
            at = hole
        to_front(t, at, key)
        return TREE_FOUND
    i = known_page(t, key)
    slot = t.at[i]
    if slot < t.first:                          # flushed, or in the front once
        slot = 0
    if slot:
        distance = n + from_slot(t, slot)
    hist[distance if distance <= t.limit else 0] += 1
    t.at[i] = 0
    filled = to_top_of_tree(t, slot, hole, key)
    return TREE_FOUND if slot else TREE_FILLED if filled else TREE_NEW


cdef void tree_follow(Tree *t, uint64_t key, bint dead, bint filled, bint repeat) noexcept nogil:
    cdef uint64_t hash, distance = 0, slot = 0, i = 0
    cdef uint64_t *hist
    cdef uint32_t at, n = t.n_front, hole
    if not t.threshold or t.failed:
        return
    hash = mix(key)
    if hash >> 32 >= t.threshold:
        return
    hist = t.hist + (hash >> 29 & 7) * (t.limit + 1)
    at = in_front(t, ANYBODY - 1 if dead else key, &hole)
    if at < n:
        distance = at + 1
    elif not dead:
        i = find_page(t, key)
        if t.page[i] and t.at[i] >= t.first:
            slot = t.at[i]
            distance = n + from_slot(t, slot)
    hist[0] -= 1                                # where the part counted it
    if not repeat:
        hist[distance if distance <= t.limit else 0] += 1
    if filled:
        if distance:
            tree_invalidate(t, key)
    elif at < n:
        if hole < at:
            t.front[at] = HOLE
            at = hole
        to_front(t, at, ANYBODY)
    else:
        if slot:
            t.at[i] = 0
        to_top_of_tree(t, slot, hole, ANYBODY)


cdef void tree_invalidate(Tree *t, uint64_t key) noexcept nogil:
    cdef uint32_t at
    cdef uint64_t i
    if not t.threshold or mix(key) >> 32 >= t.threshold or t.failed:
        return
    for at in range(t.n_front):
        if t.front[at] == key:
            t.front[at] = HOLE
            t.holes_in_front += 1
            t.at[find_page(t, key)] = 0
            return
    i = find_page(t, key)
    if t.page[i] and t.at[i] >= t.first:
        t.slot[t.at[i]] = HOLE
        push_hole(t, t.at[i])
        t.at[i] = 0


cdef void tree_flush(Tree *t) noexcept nogil:
    t.n_front = t.holes_in_front = 0
    t.n_holes = t.used = 0
    t.first = t.next
    # a rank is counted from the newest slot down; the bits below `first` must not be
    if t.next > 1:
        memset(t.word, 0, (t.cap >> 6) * 8)
        memset(t.fenwick, 0, ((t.cap >> 6) + 1) * 4)


cdef uint64_t tree_size(const Tree *t) noexcept nogil:
    return t.n_front + t.used


cdef void tree_order(const Tree *t, uint64_t *to) noexcept nogil:
    cdef uint64_t i, n = t.n_front
    for i in range(n):
        to[i] = t.front[i]
    i = t.next
    while i > t.first:
        i -= 1
        if t.word[i >> 6] >> (i & 63) & 1:
            to[n] = t.slot[i]
            n += 1


cdef void tree_know(Tree *t, uint64_t key) noexcept nogil:
    if not t.failed and mix(key) >> 32 < t.threshold:
        known_page(t, key)


cdef void tree_load(Tree *t, const uint64_t *order, uint64_t n) noexcept nogil:
    cdef uint64_t i = n
    tree_flush(t)
    memset(t.at, 0, 4 * (t.mask + 1))
    t.first = t.next = 1
    while i and not t.failed:
        i -= 1
        if order[i] != HOLE and order[i] != ANYBODY:
            known_page(t, order[i])
        if i >= FRONT:
            push(t, order[i])
        else:
            t.front[i] = order[i]
            t.holes_in_front += order[i] == HOLE
    t.n_front = min(n, FRONT)


cdef bint tree_new(Tree *t, uint64_t limit, uint64_t threshold) noexcept nogil:
    t.limit = limit
    t.threshold = threshold
    t.mask = (1 << 12) - 1
    t.max_holes = 1 << 8
    t.first = t.next = 1
    t.page = <uint64_t *> calloc(t.mask + 1, 8)
    t.at = <uint32_t *> calloc(t.mask + 1, 4)
    t.hole = <uint32_t *> calloc(t.max_holes, 4)
    t.hist = <uint64_t *> calloc(GROUPS * (limit + 1), 8)
    return t.page != NULL and t.at != NULL and t.hole != NULL and t.hist != NULL and new_slots(t, 1 << 12)


cdef void tree_free(Tree *t) noexcept nogil:
    free(t.word)
    free(t.fenwick)
    free(t.slot)
    free(t.page)
    free(t.at)
    free(t.hole)
    free(t.hist)
