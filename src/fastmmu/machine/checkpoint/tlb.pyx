"""The TLB of a physical CPU, written and read. Header: tlb.pxd.

What is read is taken only where it is a TLB: ways in an order, entries of contexts that exist, lists without ends that
are missing. What follows from the entries, as their numbers, is counted anew.
"""

import numpy as np

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.machine.checkpoint.extensions cimport keep_extensions
from fastmmu.tlb.entries cimport (
    BUCKETS, CAUSES, CTX_DEAD, CTX_FREE, CTX_LIVE, EXTENDED, GPM, KINDS, K_EPSC, K_GLOBAL, K_GPM, K_LOCAL, K_PSC, L2,
    SLOT_BITS, SLOTS, TlbArray, TlbContext, TlbSet, UNITS, bucket_of, fractured_in, fractured_of, id_links, set_at,
    tlb_switch, unit_of,
)
from fastmmu.tlb.lookup cimport EPSC, PSC, Tlb
from fastmmu.tlb.making cimport policy_bytes, tlb_reshape
from fastmmu.tlb.replacement cimport BY_POLICY, LRU, LRU_LONG, NONE, before, behind, chain_of, chained, tags

from fastmmu.errors import CheckpointError


cdef int keep_tlb(_Archive a, Tlb *t) except -1:
    # Tlb of tlb/entries.pxd. Derived: key port unit fractured bucket. Of the new TLB: grow l2_fractures quick_on
    # max_id at beyond. Elsewhere: array ctx state free_ids live_ids extension. Of hyperthreads, which are not written:
    # peers peer lost
    cdef uint32_t omit = t.omit & ~<uint32_t> EXTENDED
    if t.peers:
        raise CheckpointError("its TLB is a hyperthread's, which is not written apart from the others of its core")
    a.under("tlb")
    a.same("l2_fractures", t.l2_fractures)
    a.same("max_id", t.max_id)
    a.same("arrays", t.arrays)
    a.u32("omit", &omit, (1 << CAUSES) - 1)
    t.omit = omit | t.omit & EXTENDED
    a.u64("probes", &t.probes)
    a.flag("lower", &t.lower)
    a.u64("quick_done", &t.quick_done)
    a.u32("vpid", &t.vpid, 0xFFFF)
    a.u32("pcid", &t.pcid, 0xFFF)
    a.u64("eptrta", &t.eptrta)
    a.u32("next_id", &t.next_id, t.max_id + 1)
    a.u32("n_free", &t.n_free, t.max_id)
    a.u32("n_live", &t.n_live, t.max_id)
    a.plain("c", &t.c, sizeof(t.c))
    if a.loading and t.next_id < 1:
        a.refuse("a TLB whose contexts begin with 0")
    keep_contexts(a, t)
    for i in range(t.arrays):
        keep_array(a, t, i)
    if a.loading:
        take_in(a, t)
    if t.extension != NULL:
        keep_extensions(a, t)
    return 0


cdef int keep_array(_Archive a, Tlb *t, uint32_t i) except -1:
    # TlbArray of tlb/replacement.pxd. Derived: dead fractured. Of the new TLB, by its shape: base plru_and plru_or
    # memory mask log pad tags chains quota last nibbles plain plain_long index replacement unit classes shift aside
    # shared grows fetches. Elsewhere: link
    cdef TlbArray *x = &t.array[i]
    cdef uint32_t sets = x.sets, ways = x.ways
    a.under(f"tlb.array{int(i)}")
    a.u32("sets", &sets)
    a.u32("ways", &ways)
    if a.loading:
        # no more memory than the file has for it
        least = int(sets) * (32 + 16 * int(ways))
        if len(a.array("base", np.uint8)) < least or tlb_reshape(t, i, sets, ways):
            a.refuse(f"array {int(i)} of the TLB has {int(sets)} sets of {int(ways)} ways")
    a.plain("base", x.base, <uint64_t> x.sets << x.log)
    if x.replacement == BY_POLICY:              # bytes of the policy's own, to which any are a state
        a.plain("policy", x.policy.own, policy_bytes(x))
    if x.unit > GPM:
        return 0
    if a.loading:
        links_in(x, a.array("next", np.uint32, <uint64_t> x.sets * x.pad))
    else:
        links_out(x, a.put("next", np.zeros(<uint64_t> x.sets * x.pad, np.uint32)))
    return 0


cdef int links_in(TlbArray *x, const uint32_t[::1] next) except -1:
    cdef uint64_t slot
    for slot in range(<uint64_t> x.sets * x.pad):
        x.link[2 * slot] = next[slot]
        x.link[2 * slot + 1] = 0
    return 0


cdef int links_out(const TlbArray *x, uint32_t[::1] next) except -1:
    # of entries that are in a list
    cdef const TlbSet *s
    cdef uint64_t i, way
    for i in range(x.sets if x.fractured else 0):
        s = set_at(x, i)
        for way in range(x.pad):
            if s.way[way] and fractured_in(x, s.way[x.pad + way]):
                next[i * x.pad + way] = x.link[2 * (i * x.pad + way)]
    return 0


# ---- contexts ---------------------------------------------------------------------------------------------

cdef int keep_contexts(_Archive a, Tlb *t) except -1:
    # by number, from 1 on; the lists of those that are free, in use, and in a bucket
    cdef uint32_t n = t.next_id - 1
    a.plain("state", t.state + 1, n)
    a.plain("free_ids", t.free_ids, 2 * t.n_free)
    a.plain("live_ids", t.live_ids, 2 * t.n_live)
    eptrta, fields = np.zeros(n, np.uint64), np.zeros(6 * n, np.uint32)
    if a.loading:
        eptrta, fields = a.array("ctx.eptrta", np.uint64, n), a.array("ctx", np.uint32, 6 * n)
        contexts_in(a, t, eptrta, fields, n)
    else:
        contexts_out(t, eptrta, fields, n)
        a.put("ctx.eptrta", eptrta)
        a.put("ctx", fields)
    return 0


cdef int contexts_out(Tlb *t, uint64_t[::1] eptrta, uint32_t[::1] fields, uint32_t n) except -1:
    # TlbContext of tlb/entries.pxd. Derived: total live place owner
    cdef TlbContext *x
    cdef uint32_t i
    for i in range(n):
        x = &t.ctx[i + 1]
        if t.state[i + 1] == CTX_FREE:
            continue
        eptrta[i] = x.eptrta
        fields[6 * i] = x.vpid
        fields[6 * i + 1] = x.pcid
        fields[6 * i + 2] = x.kind
        if t.state[i + 1] == CTX_LIVE:
            fields[6 * i + 3] = x.next
        else:
            fields[6 * i + 4] = x.cause
    return 0


cdef int contexts_in(_Archive a, Tlb *t, const uint64_t[::1] eptrta, const uint32_t[::1] fields, uint32_t n) except -1:
    cdef TlbContext *x
    cdef uint32_t i, id, live = 0, vacant = 0, bucket
    cdef uint8_t[::1] seen = np.zeros(n + 1, np.uint8)
    memset(t.bucket, 0, BUCKETS * sizeof(uint16_t))
    for i in range(n):
        x = &t.ctx[i + 1]
        memset(x, 0, sizeof(TlbContext))
        if t.state[i + 1] > CTX_DEAD:
            a.refuse(f"context {int(i) + 1} of the TLB has no state")
        if t.state[i + 1] == CTX_FREE:
            vacant += 1
            continue
        x.owner = t
        x.eptrta = eptrta[i]
        x.vpid, x.pcid = fields[6 * i], fields[6 * i + 1]
        if fields[6 * i + 2] >= KINDS or fields[6 * i + 3] > n or fields[6 * i + 4] >= CAUSES:
            a.refuse(f"context {int(i) + 1} of the TLB is of no kind")
        x.kind, x.next, x.cause = fields[6 * i + 2], fields[6 * i + 3], fields[6 * i + 4]
        live += t.state[i + 1] == CTX_LIVE
    if live != t.n_live or vacant != t.n_free:
        a.refuse("the TLB has more contexts than it says, or fewer")
    for i in range(t.n_free):
        once(a, &seen[0], n, t.free_ids[i])
        if t.state[t.free_ids[i]] != CTX_FREE:
            a.refuse("a context of the TLB that is free is in use")
    for i in range(t.n_live):
        id = t.live_ids[i]
        once(a, &seen[0], n, id)
        if t.state[id] != CTX_LIVE:
            a.refuse("a context of the TLB that is in use is not")
        t.ctx[id].place = i
    # the chains: each context in use has one before it at most, which is of its bucket; a bucket begins with the one
    # that has none
    seen = np.zeros(n + 1, np.uint8)
    for i in range(t.n_live):
        x = &t.ctx[t.live_ids[i]]
        if x.next:
            once(a, &seen[0], n, x.next)
            if t.state[x.next] != CTX_LIVE or of_bucket(x) != of_bucket(&t.ctx[x.next]):
                a.refuse("a chain of contexts of the TLB leads elsewhere")
    live = 0
    for i in range(t.n_live):
        id = t.live_ids[i]
        if seen[id]:
            continue
        bucket = of_bucket(&t.ctx[id])
        if t.bucket[bucket]:
            a.refuse("two chains of contexts of the TLB begin in one place")
        t.bucket[bucket] = id
        while id:
            live += 1
            id = t.ctx[id].next
    if live != t.n_live:
        a.refuse("a chain of contexts of the TLB has no end")
    return 0


cdef uint32_t of_bucket(const TlbContext *x) noexcept:
    return bucket_of(x.kind, x.vpid, x.pcid, x.eptrta)


cdef int once(_Archive a, uint8_t *seen, uint32_t n, uint32_t id) except -1:
    if not 1 <= id <= n or seen[id]:
        a.refuse("a list of contexts of the TLB has one twice, or one that there is not")
    seen[id] = 1
    return 0


# ---- entries that were read -------------------------------------------------------------------------------

cdef int take_in(_Archive a, Tlb *t) except -1:
    cdef uint32_t i, s, id
    cdef int u
    cdef uint32_t vpid = t.vpid, pcid = t.pcid
    cdef uint64_t eptrta = t.eptrta
    for u in range(UNITS):
        memset(t.unit[u].live, 0, sizeof(t.unit[u].live))
        t.unit[u].large = 0
    for i in range(t.arrays):
        t.array[i].dead = t.array[i].fractured = 0
    for i in range(t.arrays):
        for s in range(t.array[i].sets):
            take_set(a, t, &t.array[i], set_at(&t.array[i], s))
    for id in range(1, t.next_id):
        if t.state[id] != CTX_FREE and not t.ctx[id].total:
            a.refuse(f"context {int(id)} of the TLB has no entry")
    fractured_lists(a, t)
    t.vpid = ~t.vpid                            # what is in force is found anew
    tlb_switch(t, vpid, pcid, eptrta)
    return 0


cdef bint belongs(const TlbArray *x, int kind) noexcept:
    # an array holds entries of contexts of this kind
    if x.unit == PSC:
        return kind == K_PSC
    if x.unit == EPSC:
        return kind == K_EPSC
    if x.unit == GPM:
        return kind == K_GPM
    return kind == K_LOCAL or kind == K_GLOBAL or kind == K_GPM and x.unit == L2


cdef int take_set(_Archive a, Tlb *t, TlbArray *x, TlbSet *s) except -1:
    cdef TlbContext *c
    cdef uint64_t key, value
    cdef uint32_t way, id
    cdef int u, size
    check_order(a, x, s)
    for way in range(x.pad):
        key, value = s.way[way], s.way[x.pad + way]
        if not key:
            continue
        id, size = key >> 2 & 0xFFFF, key & 3
        if (way >= x.ways or key >> 63 or not 1 <= id < t.next_id or t.state[id] == CTX_FREE
                or not x.classes >> size & 1):
            a.refuse("an entry of the TLB is of no context")
        c = &t.ctx[id]
        u = unit_of(x, c.kind)
        if not belongs(x, c.kind) or t.unit[u].by[size] != x:
            a.refuse("an entry of the TLB lies in an array that has none of its kind")
        if not value or (x.unit <= GPM and (value >> 60 or value >> 8 & 3 == 3)):
            a.refuse("an entry of the TLB has a value that none has")
        c.total += 1
        if t.state[id] == CTX_DEAD:
            x.dead += 1
        else:
            c.live[u][size] += 1
            t.unit[u].live[size] += 1
            if size:
                t.unit[u].large += 1
        x.fractured += fractured_in(x, value)
    if s.key and x.unit <= GPM and (s.value >> 60 or s.value >> 8 & 3 == 3):
        a.refuse("the entry of the TLB that was used last has a value that none has")
    return 0


cdef int check_order(_Archive a, const TlbArray *x, const TlbSet *s) except -1:
    cdef uint64_t seen = 0, order = s.order
    cdef int i
    if x.replacement == LRU:
        for i in range(16):
            seen |= <uint64_t> 1 << (order & 15)
            if i >= <int> x.ways and order & 15 != <uint64_t> i:
                seen = 0
                break
            order >>= 4
        if seen != 0xFFFF:
            a.refuse("the ways of a set of the TLB are in no order")
    elif x.replacement == LRU_LONG:
        long_list(a, x, s)
        if x.tags:
            for i in range(x.ways, x.tags):
                if tags(x, s)[i]:
                    a.refuse("a set of the TLB has more tags than ways")
        else:
            chains(a, x, s)
    return 0


cdef int long_list(_Archive a, const TlbArray *x, const TlbSet *s) except -1:
    # every way once, from the first to the last
    cdef const uint16_t *next = behind(x, s)
    cdef const uint16_t *previous = before(x, s)
    cdef uint32_t way = s.order & 0xFFFF, last = NONE, n = 0
    while way < x.ways and n < x.ways and previous[way] == last:
        n += 1
        last = way
        way = next[way]
    if n != x.ways or way != NONE or s.order >> 16 != last:
        a.refuse("the ways of a set of the TLB are in no order")
    return 0


cdef int chains(_Archive a, const TlbArray *x, const TlbSet *s) except -1:
    # every way that holds an entry once, in the chain of its page
    cdef const uint16_t *heads = chained(x, s) + x.pad
    cdef uint32_t chain, way, n = 0, used = 0
    for way in range(x.ways):
        used += s.way[way] != 0
    for chain in range(x.chains + 1):
        way = heads[chain]
        while way:
            n += 1
            if way > x.ways or n > used or not s.way[way - 1] or chain_of(x, s, s.way[way - 1]) != heads + chain:
                a.refuse("a chain of a set of the TLB leads elsewhere")
            way = chained(x, s)[way - 1]
    if n != used:
        a.refuse("a set of the TLB has entries in no chain")
    return 0


# ---- entries smaller than the guest's page, linked by that ------------------------------------------------------

cdef uint32_t *list_at(Tlb *t, uint32_t id) noexcept:
    # the first of the list in which the entry of this id is to be; NULL: there is no such entry, or it is in none
    cdef uint32_t array = (id - 1) >> SLOT_BITS, slot = (id - 1) & (SLOTS - 1)
    cdef TlbArray *x
    cdef TlbSet *s
    if not id or array >= t.arrays:
        return NULL
    x = &t.array[array]
    if x.unit > GPM or slot >= <uint64_t> x.sets * x.pad:
        return NULL
    s = set_at(x, slot // x.pad)
    slot = slot % x.pad
    if not s.way[slot] or not fractured_in(x, s.way[x.pad + slot]):
        return NULL
    return fractured_of(t, s.way[slot] >> 18 << 12, s.way[x.pad + slot] >> 10 & 3)


cdef int fractured_lists(_Archive a, Tlb *t) except -1:
    # each such entry is behind one of its list, or the first of it
    cdef uint64_t total = 0, reached = 0, slot
    cdef uint32_t i, id
    cdef uint32_t *links
    memset(t.fractured, 0, sizeof(t.fractured))
    for i in range(t.arrays):
        total += t.array[i].fractured
        for slot in range(<uint64_t> t.array[i].sets * t.array[i].pad if t.array[i].fractured else 0):
            id = (i << SLOT_BITS | <uint32_t> slot) + 1
            links = id_links(t, id)
            if list_at(t, id) != NULL and links[0]:
                if list_at(t, links[0]) != list_at(t, id) or id_links(t, links[0])[1]:
                    a.refuse("a list of entries of the TLB leads elsewhere")
                id_links(t, links[0])[1] = id
    for i in range(t.arrays):
        for slot in range(<uint64_t> t.array[i].sets * t.array[i].pad if t.array[i].fractured else 0):
            id = (i << SLOT_BITS | <uint32_t> slot) + 1
            if list_at(t, id) == NULL or id_links(t, id)[1]:
                continue
            if list_at(t, id)[0]:
                a.refuse("two lists of entries of the TLB begin in one place")
            list_at(t, id)[0] = id
            while id:
                reached += 1
                id = id_links(t, id)[0]
    if reached != total:
        a.refuse("a list of entries of the TLB has no end")
    return 0
