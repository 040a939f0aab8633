"""The tables that the VMM owns, written and read. Header: mmu.pxd; what lies in their pages is host memory.

Of the lists in which entries stand only what follows an entry is written: where a list begins, how long it is, and what
is before an entry follows from that, and a list that is none is refused.
"""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from fastmmu.arch.memtype cimport MT_UC, MT_WB, MT_WC, MT_WT
from fastmmu.arch.types cimport MODE_32
from fastmmu.kvm.kvm cimport KvmVcpu
from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.machine.checkpoint.slots cimport keep_slots
from fastmmu.mmu.memslots cimport Memslot, gfn_to_memslot
from fastmmu.mmu.mmu cimport (
    EPT_LEVELS, NO_SP, PAE_LEVELS, ROLE_4_BYTE, Mmu, MmuContext, Sp, id_index, id_owner, mmu_frame,
    spte_id,
)
from fastmmu.mmu.pages cimport mmu_hpa

from fastmmu.errors import OutOfMemoryError

cdef enum:
    FIELDS = 12                 # words of a table page's descriptor
    MOST_TABLES = 1 << 22


cdef int keep_mmu(_Archive a, KvmVcpu *vcpu) except -1:
    # Mmu of mmu/mmu.pxd. Derived: owner bucket rmap rmap_large rmap_n rmap_large_n tables_in indirect freed_room
    # sp_room. Of the new machine: mem guest policy format noncoherent ignore_cd ad pool_end pool_start bucket_mask vcpu
    # contexts pdpt caches. Elsewhere: mtrrs slots freed n_freed sp n_sp free_sp. Of agile
    # paging, refused: beside nested
    cdef Mmu *m = &vcpu.kvm.mmu
    cdef int last
    a.under("mmu")
    a.same("pool_start", m.pool_start)
    a.same("pool_end", m.pool_end)
    a.flag("uncached", &m.uncached)
    keep_mtrrs(a, m)
    a.u64("pool", &m.pool, m.pool_end)
    a.u32("nx_splits", &m.nx_splits)
    a.flag("flush", &m.flush)
    a.flag("out_of_tables", &m.out_of_tables)
    a.flag("anywhere", &m.anywhere)
    a.plain("counters", &m.counters, sizeof(m.counters))
    if a.loading:
        forget_tables(m)
    keep_slots(a, &m.slots)
    last = m.slots.last
    a.under("mmu")
    keep_freed(a, m)
    keep_tables(a, m)
    m.slots.last = last                         # as before the slots were asked
    keep_context(a, vcpu)
    return 0


cdef int keep_mtrrs(_Archive a, Mmu *m) except -1:
    # MtrrState of arch/memtype.pxd. All: enabled fixed_enabled default_type fixed base mask n
    cdef int i
    cdef bint known = True
    a.plain("mtrrs", &m.mtrrs, sizeof(m.mtrrs))
    if not a.loading:
        return 0
    if not 0 <= m.mtrrs.n <= 32:
        a.refuse(f"{int(m.mtrrs.n)} variable MTRRs")
    for i in range(88):
        known = known and of_memory(m.mtrrs.fixed[i])
    for i in range(m.mtrrs.n):
        known = known and of_memory(m.mtrrs.base[i] & 0xFF)
    if not known or not of_memory(m.mtrrs.default_type):
        a.refuse("an MTRR holds no memory type")
    return 0


cdef bint of_memory(uint64_t type) noexcept:
    return type == MT_UC or type == MT_WC or MT_WT <= type <= MT_WB


cdef int keep_freed(_Archive a, Mmu *m) except -1:
    # pages given back, as a stack
    cdef uint64_t n
    if not a.loading:
        n = m.n_freed
        found = np.empty(n, np.uint64)
        copy_out(found, m.freed, n)
        a.put("freed", found)
        return 0
    found = a.array("freed", np.uint64)
    n = len(found)
    if n > (m.pool_end - m.pool_start) >> 12:
        a.refuse("more table pages were given back than there are")
    free(m.freed)
    m.n_freed = m.freed_room = 0
    m.freed = <uint64_t *> malloc(max(1, n) * sizeof(uint64_t))
    if m.freed == NULL:
        raise OutOfMemoryError("no memory for the VMM's tables")
    copy_in(m.freed, found, n)
    m.n_freed = m.freed_room = <uint32_t> n
    return 0


cdef int copy_out(uint64_t[::1] to, const uint64_t *p, uint64_t n) except -1:
    if n:
        memcpy(&to[0], p, 8 * n)
    return 0


cdef int copy_in(uint64_t *p, const uint64_t[::1] of, uint64_t n) except -1:
    if n:
        memcpy(p, &of[0], 8 * n)
    return 0


# ---- table pages ------------------------------------------------------------------------------------------

cdef void forget_tables(Mmu *m) noexcept:
    # those of the new machine, wherever they are named; what names none is not touched
    cdef uint32_t i, j
    cdef uint32_t *count
    cdef uint32_t *head
    for i in range(m.n_sp):
        if not m.sp[i].used:
            continue
        for j in range(512):
            head = list_of(m, spte_id(i, j), &count)
            if head != NULL:
                head[0] = 0
                if count != NULL:
                    count[0] = 0
        m.bucket[m.sp[i].gfn & m.bucket_mask] = 0
        m.owner[m.sp[i].hpa - m.pool_start >> 12] = 0
        if not m.sp[i].direct:
            m.tables_in[mmu_frame(m, mmu_hpa(m, m.sp[i].gfn << 12)) >> 9] = 0
    for i in range(m.n_sp):
        free(m.sp[i].next)
    m.n_sp = m.indirect = 0


cdef int keep_tables(_Archive a, Mmu *m) except -1:
    cdef uint64_t n = m.n_sp
    if not a.loading:
        fields, unsync = np.zeros(FIELDS * n, np.uint64), np.zeros(8 * n, np.uint64)
        target, next = np.zeros(512 * n, np.uint64), np.zeros(512 * n, np.uint32)
        tables_out(m, fields, unsync, target, next)
        a.put("sp", fields)
        a.put("sp.unsync_child", unsync)
        a.put("sp.target", target)
        a.put("sp.next", next)
        a.u32("free_sp", &m.free_sp)
        return 0
    fields = a.array("sp", np.uint64)
    n = len(fields) // FIELDS
    if n * FIELDS != len(fields) or n > MOST_TABLES or n > (m.pool_end - m.pool_start) >> 12:
        a.refuse("its table pages are more than there is room for")
    make_tables(m, n)
    tables_in(a, m, fields, a.array("sp.unsync_child", np.uint64, 8 * n), a.array("sp.target", np.uint64, 512 * n),
              a.array("sp.next", np.uint32, 512 * n))
    a.u32("free_sp", &m.free_sp)
    check_pages(a, m)
    link_buckets(a, m)
    link_entries(a, m)
    return 0


cdef int tables_out(Mmu *m, uint64_t[::1] fields, uint64_t[::1] unsync, uint64_t[::1] target,
                    uint32_t[::1] next) except -1:
    # Sp of mmu/mmu.pxd. Derived: prev parents present unsync_children. Of entries that stand in no list: nothing
    cdef const Sp *sp
    cdef uint32_t i
    cdef int j
    cdef uint64_t *f
    for i in range(m.n_sp):
        sp = &m.sp[i]
        f = &fields[FIELDS * <uint64_t> i]
        f[1] = sp.chain
        if not sp.used:
            continue
        f[0] = 1 | (1 if sp.direct else 0) << 1 | (1 if sp.unsync else 0) << 2
        f[2] = sp.hpa
        f[3] = sp.gfn
        f[4] = sp.level
        f[5] = sp.access
        f[6] = sp.role
        f[7] = sp.quadrant
        f[8] = sp.writes
        f[9] = sp.born
        f[10] = sp.split
        for j in range(8):
            unsync[8 * <uint64_t> i + j] = sp.unsync_child[j]
        for j in range(512):
            if sp.target[j]:
                target[512 * <uint64_t> i + j] = sp.target[j]
                next[512 * <uint64_t> i + j] = sp.next[j]
    return 0


cdef int make_tables(Mmu *m, uint64_t n) except -1:
    # n descriptors with their links, in place of those of the new machine
    cdef uint32_t i
    cdef uint32_t *links
    cdef void *grown
    if n > m.sp_room:
        grown = realloc(m.sp, n * sizeof(Sp))
        if grown == NULL:
            raise OutOfMemoryError("no memory for the VMM's tables")
        m.sp = <Sp *> grown
        m.sp_room = <uint32_t> n
    for i in range(<uint32_t> n):
        links = <uint32_t *> calloc(1024 * sizeof(uint32_t) + 512 * sizeof(uint64_t), 1)
        if links == NULL:
            raise OutOfMemoryError("no memory for the VMM's tables")
        memset(&m.sp[i], 0, sizeof(Sp))
        m.sp[i].next = links
        m.sp[i].prev = links + 512
        m.sp[i].target = <uint64_t *> (links + 1024)
        m.n_sp = i + 1
    return 0


cdef int tables_in(_Archive a, Mmu *m, const uint64_t[::1] fields, const uint64_t[::1] unsync,
                   const uint64_t[::1] target, const uint32_t[::1] next) except -1:
    cdef Sp *sp
    cdef uint32_t i
    cdef int j
    cdef const uint64_t *f
    cdef uint64_t most
    for i in range(m.n_sp):
        sp = &m.sp[i]
        f = &fields[FIELDS * <uint64_t> i]
        if f[0] > 7 or f[1] > 0xFFFFFFFFU:
            a.refuse(f"table page {int(i)} is neither used nor free")
        sp.chain = <uint32_t> f[1]
        if not f[0] & 1:
            continue
        most = max(max(f[5], f[6]), f[8])
        if (not 1 <= f[4] <= 5 or most > 0xFF or f[7] > 3 or f[9] > 0xFFFFFFFFU or f[10] > 0xFFFFFFFFU
                or f[3] >> 40):
            a.refuse(f"table page {int(i)} is of no level or role")
        sp.used, sp.direct, sp.unsync = 1, f[0] >> 1 & 1, f[0] >> 2
        if sp.unsync and (sp.direct or f[4] != 1):
            a.refuse(f"table page {int(i)} cannot be out of sync")
        sp.hpa, sp.gfn, sp.level, sp.access, sp.role = f[2], f[3], f[4], f[5], f[6]
        sp.quadrant, sp.writes, sp.born, sp.split = f[7], f[8], f[9], f[10]
        for j in range(8):
            sp.unsync_child[j] = unsync[8 * <uint64_t> i + j]
            sp.unsync_children += bits_of(sp.unsync_child[j])
        memcpy(sp.target, &target[512 * <uint64_t> i], 512 * sizeof(uint64_t))
        memcpy(sp.next, &next[512 * <uint64_t> i], 512 * sizeof(uint32_t))
    return 0


cdef uint32_t bits_of(uint64_t word) noexcept:
    cdef uint32_t n = 0
    while word:
        word &= word - 1
        n += 1
    return n


cdef int check_pages(_Archive a, Mmu *m) except -1:
    # each page of the pool that was given out is of one descriptor, or was given back, once
    cdef uint64_t pages = (m.pool - m.pool_start) >> 12
    cdef uint32_t i, n = 0, walked = 0
    cdef uint8_t[::1] seen
    if m.pool < m.pool_start or m.pool & 0xFFF or pages < <uint64_t> m.n_freed:
        a.refuse("the pool of table pages ends where it cannot")
    if pages and not m.n_sp:
        a.refuse("table pages without descriptors")
    seen = np.zeros(pages + 1, np.uint8)
    for i in range(m.n_freed):
        page_once(a, m, &seen[0], m.freed[i])
    for i in range(m.n_sp):
        if m.sp[i].used:
            n += 1
            page_once(a, m, &seen[0], m.sp[i].hpa)
            m.owner[m.sp[i].hpa - m.pool_start >> 12] = i
    # the descriptors that are free, each once
    seen = np.zeros(m.n_sp + 1, np.uint8)
    i = m.free_sp
    while i != NO_SP:
        if i >= m.n_sp or m.sp[i].used or seen[i]:
            a.refuse("the list of free descriptors leads elsewhere")
        seen[i] = 1
        walked += 1
        i = m.sp[i].chain
    if walked != m.n_sp - n:
        a.refuse("descriptors of table pages are neither used nor free")
    return 0


cdef int page_once(_Archive a, Mmu *m, uint8_t *seen, uint64_t hpa) except -1:
    if hpa & 0xFFF or not m.pool_start <= hpa < m.pool or seen[hpa - m.pool_start >> 12]:
        a.refuse(f"{int(hpa):#x} is no table page, or is one twice")
    seen[hpa - m.pool_start >> 12] = 1
    return 0


cdef int link_buckets(_Archive a, Mmu *m) except -1:
    # the chains of the hash; guest's tables lie in slots
    cdef uint8_t[::1] seen = np.zeros(m.n_sp + 1, np.uint8)
    cdef uint32_t i, n = 0, used = 0, next
    cdef uint64_t bucket
    cdef Memslot *slot
    for i in range(m.n_sp):
        if not m.sp[i].used:
            continue
        used += 1
        next = m.sp[i].chain
        if next:
            if (next > m.n_sp or not m.sp[next - 1].used or seen[next - 1]
                    or (m.sp[next - 1].gfn ^ m.sp[i].gfn) & m.bucket_mask):
                a.refuse("a chain of table pages leads elsewhere")
            seen[next - 1] = 1
        slot = gfn_to_memslot(&m.slots, m.sp[i].gfn)
        if not m.sp[i].direct and slot == NULL:
            a.refuse(f"table page {int(i)} shadows guest-physical page {int(m.sp[i].gfn):#x}, which is no memory")
    for i in range(m.n_sp):
        if not m.sp[i].used or seen[i]:
            continue
        bucket = m.sp[i].gfn & m.bucket_mask
        if m.bucket[bucket]:
            a.refuse("two chains of table pages begin in one place")
        m.bucket[bucket] = next = i + 1
        while next:
            n += 1
            next = m.sp[next - 1].chain
    if n != used:
        a.refuse("a chain of table pages has no end")
    count_shadowed(m)
    return 0


cdef void count_shadowed(Mmu *m) noexcept:
    # guest tables by 2 MB: each once, however many pages shadow it
    cdef uint32_t i, other
    cdef bint first
    for i in range(m.n_sp):
        if not m.sp[i].used or m.sp[i].direct:
            continue
        m.indirect += 1
        first = True
        other = m.bucket[m.sp[i].gfn & m.bucket_mask]
        while other != i + 1:
            first = first and (m.sp[other - 1].direct or m.sp[other - 1].gfn != m.sp[i].gfn)
            other = m.sp[other - 1].chain
        if first:
            m.tables_in[mmu_frame(m, mmu_hpa(m, m.sp[i].gfn << 12)) >> 9] += 1


# ---- entries and their lists ----------------------------------------------------------------------------------

cdef uint32_t *list_of(Mmu *m, uint32_t id, uint32_t **count) noexcept:
    # the list in which an entry is to stand: its first; NULL: there is no such entry, or it is in none
    cdef uint32_t owner = id_owner(id)
    cdef const Sp *sp
    cdef uint64_t target, at
    if not id or owner >= m.n_sp or not m.sp[owner].used:
        return NULL
    sp = &m.sp[owner]
    target = sp.target[id_index(id)]
    at = (target >> 1) - 1
    count[0] = NULL
    if not target:
        return NULL
    if target & 1:
        if at >= m.n_sp or not m.sp[at].used or m.sp[at].level + 1 != sp.level:
            return NULL
        return &m.sp[at].parents
    if sp.level == 1 and at < m.slots.frames:
        count[0] = &m.rmap_n[at]
        return &m.rmap[at]
    if sp.level == 2 and at <= m.slots.frames >> 9:
        count[0] = &m.rmap_large_n[at]
        return &m.rmap_large[at]
    return NULL


cdef int link_entries(_Archive a, Mmu *m) except -1:
    cdef uint64_t total = 0, reached = 0, j
    cdef uint32_t i, id, next
    cdef uint32_t *count
    cdef uint32_t *other
    cdef uint32_t *head
    m.counters.pages[0] = m.counters.pages[1] = m.counters.pages[2] = 0
    for i in range(m.n_sp):
        for j in range(512 if m.sp[i].used else 0):
            if not m.sp[i].target[j]:
                continue
            id = spte_id(i, j)
            head = list_of(m, id, &count)
            if head == NULL:
                a.refuse(f"entry {int(j)} of table page {int(i)} leads nowhere")
            total += 1
            m.sp[i].present += 1
            if count != NULL:
                m.counters.pages[m.sp[i].level - 1] += 1
                count[0] += 1
            next = m.sp[i].next[j]
            if next:
                if list_of(m, next, &other) != head or m.sp[id_owner(next)].prev[id_index(next)]:
                    a.refuse(f"entry {int(j)} of table page {int(i)} is followed by one of another list")
                m.sp[id_owner(next)].prev[id_index(next)] = id
    for i in range(m.n_sp):
        for j in range(512 if m.sp[i].used else 0):
            if not m.sp[i].target[j] or m.sp[i].prev[j]:
                continue
            id = spte_id(i, j)
            head = list_of(m, id, &count)
            if head[0]:
                a.refuse(f"entry {int(j)} of table page {int(i)} begins a list that has begun")
            head[0] = id
            while id:
                reached += 1
                id = m.sp[id_owner(id)].next[id_index(id)]
    if reached != total:
        a.refuse("a list of entries has no end")
    return 0


# ---- roots ------------------------------------------------------------------------------------------------

cdef int keep_context(_Archive a, KvmVcpu *vcpu) except -1:
    # MmuContext of mmu/mmu.pxd. Of the new machine: next. Elsewhere: ring
    cdef MmuContext *c = &vcpu.mmu
    cdef Mmu *m = &vcpu.kvm.mmu
    cdef int i, levels
    a.under("mmu.vcpu")
    a.u8("role", &c.role)
    a.number("root_level", &c.root_level, PAE_LEVELS, 5)
    a.flag("rooted", &c.rooted)
    a.u32("root", &c.root)
    a.u32("root_pcid", &c.root_pcid, 0xFFF)
    for i in range(4):
        a.u32(f"pae_root{i}", &c.pae_root[i])
    for i in range(3):
        a.u32(f"previous{i}", &c.previous[i])
        a.u32(f"previous_pcid{i}", &c.previous_pcid[i], 0xFFF)
    if not a.loading:
        return 0
    levels = EPT_LEVELS
    if vcpu.kvm.shadow:
        levels = vcpu.guest.levels if vcpu.guest.levels >= 4 else PAE_LEVELS
        if (c.role & ROLE_4_BYTE != 0) != (vcpu.guest.mode == MODE_32):
            a.refuse("the role of the tables is not that of the guest's registers")
    if c.root_level != levels:
        a.refuse("the root of the tables is of another level than the guest's registers say")
    for i in range(4):
        check_root(a, m, c.pae_root[i], PAE_LEVELS - 1)
    for i in range(3):
        check_root(a, m, c.previous[i], c.root_level)
    check_root(a, m, c.root, c.root_level)
    if c.rooted and c.root_level != PAE_LEVELS and c.root == NO_SP:
        a.refuse("a root is in use, and there is none")
    return 0


cdef int check_root(_Archive a, Mmu *m, uint32_t root, int level) except -1:
    if root != NO_SP and (root >= m.n_sp or not m.sp[root].used or m.sp[root].level != level):
        a.refuse(f"table page {int(root)} is no root")
    return 0
