"""Kernel of the batch walk: what the upper levels say of a region; blocks of addresses. Header: paging/batch.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport EPT_R, EPT_W, EPT_X, EPT_XU, FRAME, ONES, A, D, P, PS, RW, US, XD, level_shift, pt_index
from fastmmu.arch.pferr cimport PF_RSVD
from fastmmu.arch.types cimport (
    ACC_R, ACC_RW, ACC_W, ACC_X, FAULT_BUS, FAULT_EPT_MISCONFIG, FAULT_EPT_VIOLATION, FAULT_GP, FAULT_NONE,
    FAULT_NPF, FAULT_PF, MODE_4, MODE_32, MODE_NONE, MODE_PAE, GuestPath, Walk,
)
from fastmmu.paging.ept cimport NEED_R, QUAL_TRANSLATED, EptLeaf, ept_bad_type, ept_walk
from fastmmu.paging.guest cimport (
    canonical, entry_address, is_leaf, key_of, leaf_address, guest_level_shift, read_entry, table_address,
)
from fastmmu.paging.memory cimport mem_holds
from fastmmu.paging.npt cimport NPF_FINAL
from fastmmu.paging.walk cimport walk_path, walk_silent

cdef enum:
    MIN_REGION_BITS = 4         # log2 of the number of regions held
    MAX_REGION_BITS = 16        # 1 MB, of which only what the addresses touch costs anything; 128 GB of 4K pages
    LANES = 64                  # of a block
    EPT_REGION_SHIFT = 21
    CODE_SHIFT = 16             # of the fault code in a region without translations
    RIGHTS = 0x407              # bits of an EPT entry that allow something; of those of an NPT too

cdef enum Nested:               # the VMM's tables behind the guest's
    ALONE = 0
    BY_EPT = 1
    BY_NPT = 2

cdef extern from *:
    """
    #define FM_RARE(x) __builtin_expect(!!(x), 0)
    #define FM_TAKE(next, n) __atomic_fetch_add((next), (n), __ATOMIC_RELAXED)
    """
    bint rare "FM_RARE"(bint) noexcept nogil
    uint64_t take "FM_TAKE"(uint64_t *next, uint64_t n) noexcept nogil
    void prefetch "__builtin_prefetch"(const void *) noexcept nogil


# ---- a query ----------------------------------------------------------------------------------------------

cdef inline bint denies(uint32_t rights, bint write, bint write_counts) noexcept nogil:
    return rights & 1 or (rights & 2 and write and write_counts)


cdef void query_init(Query *q, Mem *m, const Paging *g, const Ept *e, int acc) noexcept nogil:
    # the rules of paging.md §4.2 as masks: each is about one right
    cdef bint user = g.user and not g.implicit, write = acc == ACC_W or acc == ACC_RW
    cdef int i
    memset(q, 0, sizeof(Query))
    q.m = m
    q.g = g
    q.e = e
    q.acc = acc
    q.la_mask = ONES if g.mode >= MODE_4 else 0xFFFFFFFFU
    q.region_shift = 12 + g.index_bits
    q.need = P | (US if user else 0) | (RW if write and (user or g.wp) else 0)
    if acc == ACC_X:
        q.forbid_any = XD
        if not user and g.smep:
            q.forbid = US
    else:
        if not user and g.smap and (g.implicit or not g.ac):
            q.forbid = US
        for i in range(16):
            if denies(g.pkr_super >> (2 * i), write, user or g.wp):
                q.key_deny |= <uint32_t> 1 << i
            if denies(g.pkr_user >> (2 * i), write, user or g.wp):
                q.key_deny |= <uint32_t> 1 << (16 + i)
    q.rsvd = g.rsvd[1][0]
    q.frame = FRAME if g.mode == MODE_32 else g.frame       # a PSE-36 page has more address bits than a PTE
    if e != NULL:
        if not e.ad:
            q.want = A | (D if write else 0)
        # more than the access needs: entries without R, and fetches that only one of X and XU allows, are left to
        # the exact walk
        q.ept_need = EPT_R | (EPT_W if write else 0)
        if e.npt:
            q.ept_need |= US
            q.ept_forbid = XD if acc == ACC_X else 0
        elif acc == ACC_X:
            q.ept_need |= EPT_X | (EPT_XU if e.mbec else 0)


cdef void query_aside(Query *q, Mem *m, Paging *g, Ept *e) noexcept nogil:
    # a read by the kernel without SMAP and keys, which no guest right stops (paging.md §4.2)
    g.user = g.implicit = g.smap = 0
    g.pkr_user = g.pkr_super = 0
    if e != NULL:
        e.ad_unchecked = 1
    query_init(q, m, g, e, ACC_R)
    q.want = 0
    q.aside = True


# ---- regions ----------------------------------------------------------------------------------------------

# What is kept of a region, one word in the format of an entry:
#   table   PS = 0: the page table's host-physical address; all of the table lies in memory
#   large   PS = 1, P = 1: serves as PTE of each address; its frame is where the region begins
#   none    PS = 1, P = 0: no address gets past the upper levels. Bits 23:16 hold the fault code, 0 = it depends on the
#           address
# Rights are those of all entries above the PTE together. A and D are set where no update of the PTE can fail; one can
# fail only under an EPT without A/D flags that maps the page table read-only (ept.md §4).

cdef inline uint64_t no_region(int fault) noexcept nogil:
    # a table may lie in memory in part, so FAULT_BUS is a matter of the single address
    return PS | <uint64_t> (0 if fault == FAULT_BUS else fault) << CODE_SHIFT


cdef inline Region *slot(Region *regions, int bits, uint64_t key) noexcept nogil:
    # neighbours never share a slot
    return regions + ((key ^ key >> bits) & ((<uint64_t> 1 << bits) - 1))


cdef uint64_t native_region(Query *q, uint64_t la) noexcept nogil:
    # Without EPT the tables say it themselves; what happens at the PTE is asked for each address.
    cdef const Paging *g = q.g
    cdef uint64_t every = ONES, any_ = 0, table = g.root, value = 0, entry, at
    cdef int level = g.levels, shift
    if g.mode >= MODE_4 and not canonical(la, g.la_bits):
        return no_region(FAULT_GP)
    if g.mode == MODE_PAE:
        table = g.pdpte[la >> 30 & 3]
        if not table & P:
            return no_region(FAULT_PF)
        table &= g.frame
    while level > 1 and not value:
        shift = guest_level_shift(g, level)
        at = entry_address(g, table, la, shift)
        if not mem_holds(q.m, at, <uint64_t> 1 << g.entry_shift):
            return no_region(FAULT_BUS)
        entry = read_entry(q.m, g, at)
        if not entry & P or entry & g.rsvd[level][entry >> 7 & 1]:
            return no_region(FAULT_PF)
        every &= entry
        any_ |= entry
        if is_leaf(g, entry, level):
            value = leaf_address(g, entry, la, shift) >> q.region_shift << q.region_shift
            value |= PS | P | <uint64_t> key_of(g, entry) << 59
        table = table_address(g, entry)
        level -= 1
    if not value:
        if not mem_holds(q.m, table, 4096):
            return no_region(FAULT_BUS)
        value = table | P
    return value | (every & (US | RW)) | (any_ & XD) | A | D


cdef uint64_t guest_region(Query *q, uint64_t la) noexcept nogil:
    # What the path of one exact walk tells of its region: it got to the PTE only if every entry above, and every EPT
    # translation of a table, is in order.
    cdef const Paging *g = q.g
    cdef Walk w
    cdef GuestPath path
    cdef uint64_t every = ONES, any_ = 0, entry, table, value
    cdef int level
    if q.e == NULL:
        return native_region(q, la)
    walk_path(q.m, g, q.e, la, q.acc, &w, &path)
    for level in range(path.top, path.level, -1):
        every &= path.entry[level]
        any_ |= path.entry[level]
    level = path.level
    if level > path.top:
        return no_region(w.fault)
    entry = path.entry[level]
    table = path.hpa[level] & FRAME
    if g.lazy_upper_a and q.want and not every & A:
        return no_region(FAULT_NONE)    # whether A may be set above is asked after the PTE has been judged
    if level == 1:
        if not mem_holds(q.m, table, 4096):
            return no_region(FAULT_BUS)
        value = table | P
    elif entry & P and entry & PS and g.large_ok[level] and w.fault != FAULT_PF:
        every &= entry
        any_ |= entry
        value = leaf_address(g, entry, la, guest_level_shift(g, level)) >> q.region_shift << q.region_shift
        value |= PS | P | (entry & (A | D)) | <uint64_t> key_of(g, entry) << 59
    else:
        return no_region(w.fault)
    value |= (every & (US | RW)) | (any_ & XD)
    if not q.want or path.ept[level] & EPT_W:
        value |= A | D
    return value


cdef uint64_t ept_region(Query *q, uint64_t gpa) noexcept nogil:
    # as above; a region without translations has no rights, and the exact walk then says why. Rights are those bits of
    # an entry, of an NPT with NX as it is
    cdef const Ept *e = q.e
    cdef EptLeaf leaf
    cdef Walk w
    cdef uint64_t every, entry, table, offset
    cdef int level, fault
    memset(&w, 0, sizeof(w))
    fault = ept_walk(q.m, e, NULL, gpa, NEED_R, True, 0, 0, &leaf, &w, NULL)
    level = leaf.level
    if level > leaf.top:
        return PS
    entry = leaf.entry[level]
    table = leaf.at[level] & FRAME
    every = leaf.every[level + 1] if level < leaf.top else ONES
    if level == 1 and mem_holds(q.m, table, 4096):
        return table | ((every ^ e.flip) & (RIGHTS | e.flip))
    if level > 1 and entry & PS and fault != FAULT_EPT_MISCONFIG and not (fault == FAULT_NPF and w.qual & PF_RSVD):
        every &= entry ^ e.flip
        offset = (<uint64_t> 1 << level_shift(level)) - 1
        return (((entry & e.frame & ~offset) | (gpa & offset)) >> EPT_REGION_SHIFT << EPT_REGION_SHIFT
                | PS | ((every ^ e.flip) & (RIGHTS | e.flip)))
    return PS


cdef inline uint64_t guest_value(Query *q, Region *regions, int bits, uint64_t la, int shift) noexcept nogil:
    cdef Region *r = slot(regions, bits, la >> shift)
    if rare(r.tag != ~(la >> shift)):
        r.value = guest_region(q, la)
        r.tag = ~(la >> shift)
    return r.value


cdef inline uint64_t ept_value(Query *q, Region *regions, int bits, uint64_t gpa) noexcept nogil:
    cdef Region *r = slot(regions, bits, gpa >> EPT_REGION_SHIFT)
    if rare(r.tag != ~(gpa >> EPT_REGION_SHIFT)):
        r.value = ept_region(q, gpa)
        r.tag = ~(gpa >> EPT_REGION_SHIFT)
    return r.value


# ---- the stages of a block ---------------------------------------------------------------------------------

cdef inline uint64_t guest_stage(Query *q, const uint64_t *va, uint64_t *gpa, uint64_t *held, uint64_t *odd, int n,
                                 int entry_shift, bint nested) noexcept nogil:
    # gpa[lane], and odd[lane] nonzero where something is amiss; OR of odd. held: what is kept of the lane's region.
    # entry_shift and nested are constants at each call.
    cdef const uint8_t *place[LANES]
    cdef uint64_t pte[LANES]
    cdef uint64_t la_mask = q.la_mask, need = q.need, forbid = q.forbid, forbid_any = q.forbid_any, rsvd = q.rsvd
    cdef uint64_t want = q.want if nested else 0, frame = q.frame, offset = (<uint64_t> 1 << q.region_shift) - 1
    cdef int shift = 21 if entry_shift == 3 else 22, bits = q.region_bits, j
    cdef Region *regions = q.guest
    cdef uint64_t index_mask = 511 if entry_shift == 3 else 1023
    cdef uint64_t la, value, entry, large, every, index, spread = 0, amiss = 0
    cdef const uint8_t *base = q.m.base
    cdef const uint8_t *at
    for j in range(n):
        spread |= va[j] ^ va[0]
    if (spread & la_mask) >> shift:
        for j in range(n):
            value = guest_value(q, regions, bits, va[j] & la_mask, shift)
            held[j] = value
            at = base + (value & FRAME) + ((va[j] >> 12 & index_mask) << entry_shift)
            if value & PS:              # the region's own word serves as PTE
                at = <const uint8_t *> &held[j]
            place[j] = at
            prefetch(at)
        for j in range(n):
            pte[j] = (<const uint64_t *> place[j])[0] if entry_shift == 3 or held[j] & PS else \
                (<const uint32_t *> place[j])[0]
    else:                               # all in one region, as in a pass over a buffer
        value = guest_value(q, regions, bits, va[0] & la_mask, shift)
        at = base + (value & FRAME)
        if value & PS:
            for j in range(n):
                pte[j] = value
        else:
            for j in range(n):
                index = va[j] >> 12 & index_mask
                pte[j] = (<const uint64_t *> at)[index] if entry_shift == 3 else (<const uint32_t *> at)[index]
        for j in range(n):
            held[j] = value
    for j in range(n):
        la = va[j] & la_mask
        value = held[j]
        entry = pte[j]
        every = value & entry
        large = 0 - (value >> 7 & 1)
        gpa[j] = (entry & frame) | (la & (0xFFF | (offset & large)))
        odd[j] = ((need & ~every) | (forbid & every) | (forbid_any & (value | entry)) | (rsvd & entry)
                  | (want & ~(value | entry)))
        amiss |= odd[j]
    if q.key_deny:
        for j in range(n):
            if q.key_deny >> ((held[j] & pte[j] & US) << 2 | (pte[j] >> 59 & 15)) & 1:
                odd[j] |= P
                amiss |= P
    return amiss


cdef inline uint64_t ept_stage(Query *q, const uint64_t *gpa, uint64_t *hpa, uint64_t *odd, int n,
                               bint npt) noexcept nogil:
    # the same from guest-physical to host-physical; npt is a constant at each call
    cdef const uint8_t *place[LANES]
    cdef uint64_t held[LANES]
    cdef uint64_t need = q.ept_need, forbid = q.ept_forbid, rsvd = q.e.rsvd[1][1], frame = q.e.frame
    cdef uint64_t value, entry, large, amiss = 0
    cdef int bits = q.region_bits, j
    cdef Region *regions = q.ept
    cdef const uint8_t *base = q.m.base
    cdef const uint8_t *at
    for j in range(n):
        value = ept_value(q, regions, bits, gpa[j])
        held[j] = value
        at = base + (value & FRAME) + 8 * pt_index(gpa[j], 1)
        if value & PS:
            at = <const uint8_t *> &held[j]
        place[j] = at
        prefetch(at)
    for j in range(n):
        value = held[j]
        entry = (<const uint64_t *> place[j])[0]
        large = 0 - (value >> 7 & 1)
        hpa[j] = (entry & frame) | (gpa[j] & (0xFFF | (0x1FFFFF & large)))
        odd[j] = (need & ~(value & entry)) | (rsvd & entry)
        odd[j] |= forbid & (value | entry) if npt else ept_bad_type(entry)
        amiss |= odd[j]
    return amiss


# ---- blocks -----------------------------------------------------------------------------------------------

cdef inline void exact(Query *q, uint64_t la, uint64_t *pa, uint8_t *fault) noexcept nogil:
    cdef Walk w
    walk_silent(q.m, q.g, q.e, la, q.acc, &w)
    if q.aside and ((w.fault == FAULT_EPT_VIOLATION and w.qual & QUAL_TRANSLATED)
                    or (w.fault == FAULT_NPF and w.qual & NPF_FINAL)):
        any_rights(q, &w)
    pa[0] = w.pa
    fault[0] = w.fault


cdef void any_rights(Query *q, Walk *w) noexcept nogil:
    # the data of a page that the EPT may let nobody read
    cdef EptLeaf leaf
    w.fault = ept_walk(q.m, q.e, NULL, w.gpa, 0, True, QUAL_TRANSLATED, 0, &leaf, w, NULL)
    w.pa = ONES if w.fault else leaf.hpa


cdef inline void block(Query *q, const uint64_t *va, uint64_t *pa, uint8_t *fault, int n, int entry_shift,
                       int nested) noexcept nogil:
    # entry_shift 0: paging is off; nested: Nested
    cdef uint64_t gpa[LANES]
    cdef uint64_t held[LANES]
    cdef uint64_t odd[LANES]
    cdef uint64_t ept_odd[LANES]
    cdef uint64_t amiss = 0, ept_amiss = 0
    cdef int code, j
    for j in range(n):
        fault[j] = FAULT_NONE
    if entry_shift:
        amiss = guest_stage(q, va, &gpa[0] if nested else pa, held, odd, n, entry_shift, nested != ALONE)
        if nested and rare(amiss != 0):
            for j in range(n):
                if odd[j]:
                    gpa[j] = 0
    else:
        for j in range(n):
            gpa[j] = va[j] & q.la_mask
            odd[j] = 0
    if nested:
        ept_amiss = ept_stage(q, gpa, pa, ept_odd, n, nested == BY_NPT)
    if rare((amiss | ept_amiss) != 0):
        for j in range(n):
            if odd[j]:
                code = FAULT_PF if odd[j] & ~(A | D) else FAULT_NONE
                if held[j] & PS and not held[j] & P:
                    code = held[j] >> CODE_SHIFT & 0xFF
                if code:
                    pa[j] = ONES
                    fault[j] = <uint8_t> code
                else:
                    exact(q, va[j], pa + j, fault + j)
            elif nested and ept_odd[j]:
                exact(q, va[j], pa + j, fault + j)


cdef inline void blocks(Query *q, const uint64_t *va, uint64_t *pa, uint8_t *fault, uint64_t n, int entry_shift,
                        int nested) noexcept nogil:
    cdef uint64_t i = 0
    while i + LANES <= n:
        block(q, va + i, pa + i, fault + i, LANES, entry_shift, nested)
        i += LANES
    if i < n:
        block(q, va + i, pa + i, fault + i, <int> (n - i), entry_shift, nested)


cdef void translate_batch(Query *q, const uint64_t *va, uint64_t *pa, uint8_t *fault, uint64_t n) noexcept nogil:
    # one body for each size of entry, alone, over an EPT and over an NPT
    cdef uint64_t i
    if q.g.mode == MODE_NONE and q.e == NULL:
        for i in range(n):
            exact(q, va[i], pa + i, fault + i)
    elif q.e == NULL:
        if q.g.entry_shift == 3:
            blocks(q, va, pa, fault, n, 3, ALONE)
        else:
            blocks(q, va, pa, fault, n, 2, ALONE)
    elif not q.e.npt:
        if q.g.mode == MODE_NONE:
            blocks(q, va, pa, fault, n, 0, BY_EPT)
        elif q.g.entry_shift == 3:
            blocks(q, va, pa, fault, n, 3, BY_EPT)
        else:
            blocks(q, va, pa, fault, n, 2, BY_EPT)
    elif q.g.mode == MODE_NONE:
        blocks(q, va, pa, fault, n, 0, BY_NPT)
    elif q.g.entry_shift == 3:
        blocks(q, va, pa, fault, n, 3, BY_NPT)
    else:
        blocks(q, va, pa, fault, n, 2, BY_NPT)


# ---- threads ----------------------------------------------------------------------------------------------

cdef void batch_size(Batch *b) noexcept nogil:
    cdef Query *q = &b.query
    q.region_bits = MIN_REGION_BITS
    while q.region_bits < MAX_REGION_BITS and <uint64_t> 1 << q.region_bits < b.n:
        q.region_bits += 1
    b.each = <uint64_t> (2 if q.e != NULL else 1) << q.region_bits


cdef bint batch_step(Batch *b, int thread) noexcept nogil:
    cdef Query q = b.query
    cdef uint64_t start = take(&b.next, b.chunk)
    if start >= b.n:
        return False
    q.guest = b.regions + b.each * <uint64_t> thread
    q.ept = q.guest + (<uint64_t> 1 << q.region_bits)
    translate_batch(&q, b.va + start, b.pa + start, b.fault + start, min(b.chunk, b.n - start))
    return True


cdef void batch_work(Batch *b, int thread) noexcept nogil:
    while batch_step(b, thread):
        pass


cdef void batch_stop(Batch *b) noexcept nogil:
    take(&b.next, b.n)
