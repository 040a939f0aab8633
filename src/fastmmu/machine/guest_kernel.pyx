"""The guest kernel under a trace of user addresses.

It answers #PF by demand paging, keeps one address space per process and sees all guest memory through a direct map of
2 MB pages. Each read and write of a page table and each page that it clears is an access of the vCPU, at supervisor
privilege, so that a shadowing VMM traps it as it would in life. A page cleared counts as one access.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.bits cimport FRAME, PCD, PS, PWT, RW, US, XD, A, D, G, P
from fastmmu.arch.pferr cimport PF_P, PF_W
from fastmmu.arch.registers cimport CR3_NO_FLUSH
from fastmmu.arch.types cimport ACC_R, ACC_W, Mem
from fastmmu.cpu.apic cimport APIC_BASE
from fastmmu.cpu.tpr_patch cimport SITE_BYTES, SITES, patch_original
from fastmmu.cpu.control cimport vcpu_mov_cr3
from fastmmu.cpu.vcpu cimport (
    ABORT_ADDRESS, ABORT_GUEST_FAULT, ABORT_GUEST_MEMORY, ABORT_HOST_MEMORY, ABORT_PROCESS, DONE_ABORT, DONE_EMULATED,
    DONE_OK, Vcpu, vcpu_abort, vcpu_access, vcpu_load, vcpu_store,
)
from fastmmu.kvm.kvm cimport to_kvm_vcpu
from fastmmu.machine.kernel_state cimport NO_PROCESS, FrameList, GuestCounters, GuestCpu, GuestKernel
from fastmmu.machine.placed cimport placed_frame, placed_free, placed_put
from fastmmu.machine.shootdown cimport (
    shoot_down, shoot_flush, shoot_free, shoot_loaded, shoot_new_cpu, shoot_serve,
)
from fastmmu.paging.huge_pages cimport BEGUN, huge_ahead, huge_begun
from fastmmu.paging.memory cimport mem_read64, mem_write64

cdef enum:
    BLOCK = 1 << 21

cdef uint64_t NO_FRAME = ~(<uint64_t> 0)
cdef uint64_t USER_TABLE = P | RW | US | A | D


cdef int kernel_init(GuestKernel *k, Mem *guest, int pages, uint32_t thp_threshold, bint pcid,
                     bint high) noexcept nogil:
    memset(k, 0, sizeof(GuestKernel))
    k.guest = guest[0]
    k.pages = pages
    k.thp_threshold = thp_threshold
    k.pcid = pcid
    k.high = high
    k.next_block = guest.nbytes if high else BLOCK      # the first 2 MB stay unused, as on a PC
    k.placed.pending = NO_FRAME
    k.count = <uint16_t *> zeroed((guest.nbytes >> 12) + 1, sizeof(uint16_t))
    return -1 if k.count == NULL or shoot_new_cpu(k, 0) else 0


cdef void kernel_load(GuestKernel *k, Vcpu *v, GuestCounters *c, uint32_t *current) noexcept nogil:
    # it runs on this vCPU from now on
    cdef uint32_t index = to_kvm_vcpu(v).index
    k.v = v
    k.c = c
    k.current = current
    k.here = k.cpu[index] if index < k.n_cpus else NULL


cdef void kernel_free(GuestKernel *k) noexcept nogil:
    zeroed_free(k.count)
    placed_free(&k.placed)
    shoot_free(k)
    free(k.root)
    free(k.generation)
    free(k.free_4k.frame)
    free(k.free_2m.frame)
    free(k.free_tables.frame)
    memset(k, 0, sizeof(GuestKernel))


# ---- frames -----------------------------------------------------------------------------------------------

cdef uint64_t take(FrameList *list) noexcept nogil:
    if not list.n:
        return NO_FRAME
    list.n -= 1
    return list.frame[list.n]


cdef inline bint own(const GuestKernel *k, uint64_t frame, uint64_t nbytes) noexcept nogil:
    # a page of guest memory, as an entry says, which others may have written
    return frame <= k.guest.nbytes - nbytes


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


cdef uint64_t new_block(GuestKernel *k) noexcept nogil:
    cdef uint64_t block = k.next_block
    if k.high:
        if block < max(k.placed.end, <uint64_t> BLOCK) + BLOCK:
            return NO_FRAME
        k.next_block -= BLOCK
        return k.next_block
    if block + BLOCK > k.guest.nbytes:
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


cdef uint64_t new_data(GuestKernel *k) noexcept nogil:
    return new_frame(k, &k.free_4k, &k.data_next, &k.data_end)


cdef uint64_t new_large(GuestKernel *k) noexcept nogil:
    cdef uint64_t frame = take(&k.free_2m)
    return frame if frame != NO_FRAME else new_block(k)


# ---- memory as the kernel sees it -------------------------------------------------------------------------

cdef inline int get(GuestKernel *k, uint64_t gpa, uint64_t *value) noexcept nogil:
    if k.silent:
        value[0] = mem_read64(&k.guest, gpa)
        return DONE_OK
    return vcpu_load(k.v, DIRECT_MAP + gpa, value)


cdef inline int put(GuestKernel *k, uint64_t gpa, uint64_t value) noexcept nogil:
    cdef uint64_t hpa = 0
    if k.silent:
        mem_write64(&k.guest, gpa, value)
        return DONE_OK
    return settled(vcpu_store(k.v, DIRECT_MAP + gpa, value, 8, &hpa))


cdef inline int settled(int outcome) noexcept nogil:
    return DONE_OK if outcome == DONE_EMULATED else outcome


cdef int clear(GuestKernel *k, uint64_t gpa, bint table) noexcept nogil:
    # one access to the page; only tables are cleared in fact, programs' data is not simulated
    cdef uint64_t hpa = 0
    cdef int outcome = DONE_OK
    if not k.silent:
        k.v.c.kernel_accesses += 1
        k.v.store_bytes = 4096
        outcome = settled(vcpu_access(k.v, DIRECT_MAP + gpa, ACC_W, False, &hpa))
        k.v.store_bytes = 0
    if table and outcome == DONE_OK:
        memset(k.guest.base + gpa, 0, 4096)
    return outcome


cdef int new_table(GuestKernel *k, uint64_t *table) noexcept nogil:
    table[0] = new_frame(k, &k.free_tables, &k.table_next, &k.table_end)
    if table[0] == NO_FRAME:
        return vcpu_abort(k.v, ABORT_GUEST_MEMORY, k.guest.nbytes)
    if not table[0] & (BLOCK - 1) and table[0] != BLOCK:
        huge_ahead(&k.guest, table[0])          # tables fill it, as they filled the first block
    elif table[0] == BLOCK + (BEGUN << 12):
        huge_begun(&k.guest, BLOCK)
    k.count[table[0] >> 12] = 0
    return clear(k, table[0], True)


# ---- boot, processes --------------------------------------------------------------------------------------

cdef int kernel_boot(GuestKernel *k) noexcept nogil:
    # the kernel half with the direct map, and process 0, as the boot loader left them
    cdef uint64_t pgd = 0, pdpt = 0, pd = 0, gpa, i
    k.silent = True
    if new_table(k, &pgd):
        return DONE_ABORT
    for i in range(k.guest.nbytes // BLOCK):
        gpa = i * BLOCK
        if gpa & ((1ULL << 39) - 1) == 0:
            if new_table(k, &pdpt):
                return DONE_ABORT
            put(k, pgd + ((DIRECT_MAP + gpa >> 39 & 511) << 3), pdpt | P | RW | A | D)
        if gpa & ((1ULL << 30) - 1) == 0:
            if new_table(k, &pd):
                return DONE_ABORT
            put(k, pdpt + ((gpa >> 30 & 511) << 3), pd | P | RW | A | D)
        put(k, pd + ((gpa >> 21 & 511) << 3), gpa | P | RW | A | D | PS | G | XD)
    k.kernel_pgd = pgd
    if (k.apic and map_apic(k)) or new_root(k, 0):
        return DONE_ABORT
    k.silent = False
    return DONE_OK


cdef int map_kernel(GuestKernel *k, uint64_t la, uint64_t leaf) noexcept nogil:
    # a 4 KB page of the kernel half, before the first process
    cdef uint64_t table = k.kernel_pgd, at, entry
    cdef int level
    for level in range(4, 1, -1):
        at = table + ((la >> (9 * level + 3) & 511) << 3)
        entry = mem_read64(&k.guest, at)
        if not entry & P:
            if new_table(k, &entry):
                return DONE_ABORT
            entry |= P | RW | A | D
            put(k, at, entry)
        table = entry & FRAME
    return put(k, table + ((la >> 12 & 511) << 3), leaf | P | RW | A | D | G)


cdef int map_apic(GuestKernel *k) noexcept nogil:
    cdef uint32_t i
    if new_table(k, &k.code_gpa) or new_table(k, &k.rom_gpa):
        return DONE_ABORT
    for i in range(2 * SITES):
        patch_original(k.guest.base + k.code_gpa + SITE_BYTES * i, i >> 1, i & 1, (GUEST_APIC & 0xFFFFFFFFU) + 0x80)
    if map_kernel(k, GUEST_APIC, APIC_BASE | PWT | PCD):
        return DONE_ABORT
    return map_kernel(k, GUEST_CODE, k.code_gpa) or map_kernel(k, GUEST_ROM, k.rom_gpa)


cdef int new_root(GuestKernel *k, uint64_t process) noexcept nogil:
    cdef uint64_t pgd = 0, i, entry
    cdef void *grown
    if process >= k.n_roots:
        grown = realloc(k.root, (process + 64) * sizeof(uint64_t))
        if grown == NULL:
            return vcpu_abort(k.v, ABORT_HOST_MEMORY, process)
        k.root = <uint64_t *> grown
        grown = realloc(k.generation, (process + 64) * sizeof(uint64_t))
        if grown == NULL:
            return vcpu_abort(k.v, ABORT_HOST_MEMORY, process)
        k.generation = <uint64_t *> grown
        memset(&k.root[k.n_roots], 0, (process + 64 - k.n_roots) * sizeof(uint64_t))
        memset(&k.generation[k.n_roots], 0, (process + 64 - k.n_roots) * sizeof(uint64_t))
        k.n_roots = process + 64
    if new_table(k, &pgd):
        return DONE_ABORT
    for i in range(256, 512):
        entry = mem_read64(&k.guest, k.kernel_pgd + 8 * i)
        if entry and put(k, pgd + 8 * i, entry):
            return DONE_ABORT
    k.root[process] = pgd
    return DONE_OK


cdef int kernel_switch(GuestKernel *k, uint64_t process) noexcept nogil:
    # the process runs from now on; it is made where the number is new
    cdef uint64_t cr3
    cdef int outcome
    cdef bint good
    if process >= 1 << 20:
        return vcpu_abort(k.v, ABORT_PROCESS, process)
    if process >= k.n_roots or not k.root[process]:
        k.silent = k.v.premap != NULL
        outcome = new_root(k, process)
        k.silent = False
        if outcome:
            return outcome
    good = shoot_loaded(k, process)
    k.current[0] = process
    cr3 = k.root[process]
    if k.pcid:
        cr3 |= process % 4095 + 1
        if good:
            cr3 |= CR3_NO_FLUSH
    return vcpu_mov_cr3(k.v, cr3)


cdef int kernel_resume(GuestKernel *k) noexcept nogil:
    # the interrupts that came meanwhile are taken; one that idled goes on with its process
    cdef GuestCpu *me = k.here
    cdef uint32_t process = k.current[0]
    if not me.online:
        shoot_loaded(k, process)
        return DONE_OK
    if (me.n or me.overflow) and shoot_serve(k):
        return DONE_ABORT
    if me.process == NO_PROCESS:
        k.c.cr3_flushes += 1                    # no context switch
        k.v.c.cr3_switches -= 1
        return kernel_switch(k, process)
    if me.lazy:                                 # a thread of the process that ran last (switch_mm_irqs_off)
        me.lazy = False
        if me.generation != k.generation[process]:
            k.c.late_flushes += 1
            me.generation = k.generation[process]
            return shoot_flush(k)
    return DONE_OK


cdef int kernel_idle(GuestKernel *k) noexcept nogil:
    # the idle task needs no process (enter_lazy_tlb)
    cdef GuestCpu *me = k.here
    if me.process == NO_PROCESS or me.lazy:
        return DONE_OK
    if k.lazy_tlb:
        me.lazy = True
        return DONE_OK
    if k.pcid:
        me.pcid_generation[k.current[0] % 4095 + 1] = me.generation
    me.process = NO_PROCESS
    k.c.cr3_flushes += 1
    k.v.c.cr3_switches -= 1
    return vcpu_mov_cr3(k.v, k.kernel_pgd | (CR3_NO_FLUSH if k.pcid else 0))


# ---- demand paging ----------------------------------------------------------------------------------------

cdef int next_table(GuestKernel *k, uint64_t at, uint64_t *table) noexcept nogil:
    # the table that the entry at guest-physical address `at` points to, made where there is none
    cdef uint64_t entry = 0
    if get(k, at, &entry):
        return DONE_ABORT
    if not entry & P:
        if new_table(k, table):
            return DONE_ABORT
        return put(k, at, table[0] | USER_TABLE)
    table[0] = entry & FRAME
    return DONE_OK if own(k, table[0], 4096) else vcpu_abort(k.v, ABORT_GUEST_FAULT, at)


cdef int kernel_page_fault(GuestKernel *k, uint64_t la, uint32_t error_code) noexcept nogil:
    # error_code: of the #PF; only "not present" has an answer, every page of a program allows all it does
    cdef uint64_t pdpt = 0, pd = 0, pt = 0, frame, entry = 0
    cdef uint64_t dirty = D if error_code & PF_W or k.silent else 0
    cdef bint large = k.pages == PAGES_2M
    cdef int i
    if la >> 47:
        return vcpu_abort(k.v, ABORT_ADDRESS, la)
    if error_code & PF_P:
        return vcpu_abort(k.v, ABORT_GUEST_FAULT, la)
    if next_table(k, k.root[k.current[0]] + ((la >> 39 & 511) << 3), &pdpt):
        return DONE_ABORT
    if next_table(k, pdpt + ((la >> 30 & 511) << 3), &pd):
        return DONE_ABORT
    k.c.pages_touched += 1
    frame = placed_frame(&k.placed, k.current[0], la, &large)
    if large and k.placed.n:                    # pages of 4 KB may stand there
        if get(k, pd + ((la >> 21 & 511) << 3), &entry):
            return DONE_ABORT
        if entry & P:
            large = False
            if frame != NO_FRAME:
                frame |= la & 0x1FF000
    if large:
        if frame == NO_FRAME:
            frame = new_large(k)
        if frame == NO_FRAME:
            return vcpu_abort(k.v, ABORT_GUEST_MEMORY, k.guest.nbytes)
        if not k.silent:
            for i in range(512):
                if clear(k, frame + 4096 * i, False):
                    return DONE_ABORT
        return put(k, pd + ((la >> 21 & 511) << 3), frame | P | RW | US | A | PS | dirty)
    if next_table(k, pd + ((la >> 21 & 511) << 3), &pt):
        return DONE_ABORT
    if frame == NO_FRAME:
        frame = new_data(k)
        if frame == NO_FRAME:
            return vcpu_abort(k.v, ABORT_GUEST_MEMORY, k.guest.nbytes)
    if clear(k, frame, False):
        return DONE_ABORT
    if put(k, pt + ((la >> 12 & 511) << 3), frame | P | RW | US | A | dirty):
        return DONE_ABORT
    k.count[pt >> 12] += 1
    if k.pages == PAGES_THP and k.count[pt >> 12] == k.thp_threshold and not k.placed.n:
        return collapse(k, pd + ((la >> 21 & 511) << 3), pt)
    return DONE_OK


cdef int collapse(GuestKernel *k, uint64_t at, uint64_t pt) noexcept nogil:
    # the pages of one page table become one 2 MB page: copied, or cleared where nothing was mapped
    cdef uint64_t frame = new_large(k), entry = 0, hpa = 0, dirty = 0
    cdef int i
    if frame == NO_FRAME:
        return DONE_OK                          # no 2 MB block is free: it stays as it is
    for i in range(512):
        if get(k, pt + 8 * i, &entry):
            return DONE_ABORT
        if entry & P:
            k.v.c.kernel_accesses += 1
            if settled(vcpu_access(k.v, DIRECT_MAP + (entry & FRAME), ACC_R, False, &hpa)):
                return DONE_ABORT
            dirty |= entry & D
            if own(k, entry & FRAME, 4096):
                give(&k.free_4k, entry & FRAME)
        if clear(k, frame + 4096 * i, False):
            return DONE_ABORT
    if put(k, at, frame | P | RW | US | A | PS | dirty):
        return DONE_ABORT
    give(&k.free_tables, pt)
    k.c.collapses += 1
    return shoot_down(k, 0, 0, 0, True)


# ---- pages that a trace places ----------------------------------------------------------------------------

cdef bint mapped(GuestKernel *k, uint64_t la) noexcept nogil:
    # as the tables stand, without an access of the guest
    cdef uint64_t table = k.root[k.current[0]], entry
    cdef int level
    for level in range(4, 0, -1):
        entry = mem_read64(&k.guest, table + ((la >> (9 * level + 3) & 511) << 3))
        if not entry & P:
            return False
        if level == 2 and entry & PS:
            break
        table = entry & FRAME
        if not own(k, table, 4096):
            return False
    return True


cdef int kernel_place(GuestKernel *k, int size, uint64_t address) noexcept nogil:
    # one of the two events that say where a page lies; a page that lay elsewhere is unmapped
    cdef uint64_t la = k.placed.pending, n = <uint64_t> 1 << (size & 31), before, at
    cdef bint large = size == 21, was = False
    if not k.high:
        return vcpu_abort(k.v, ABORT_PLACE_LOW, address)
    if size == 0:
        k.placed.pending = address
        return vcpu_abort(k.v, ABORT_ADDRESS, address) if address >> 47 else <int> DONE_OK
    k.placed.pending = NO_FRAME
    if la == NO_FRAME or (size != 12 and size != 21) or (la | address) & (n - 1):
        return vcpu_abort(k.v, ABORT_PLACE, address)
    if address >= k.next_block or k.next_block - address < n:
        return vcpu_abort(k.v, ABORT_PLACE_OUTSIDE, address)
    before = placed_frame(&k.placed, k.current[0], la, &was)
    if before == address and was == large:
        return DONE_OK
    if placed_put(&k.placed, k.current[0], la, large, address):
        return vcpu_abort(k.v, ABORT_HOST_MEMORY, address)
    at = la
    while at < la + n:
        if mapped(k, at) and kernel_unmap(k, at):
            return DONE_ABORT
        at += 4096
    return DONE_OK


cdef int kernel_unmap(GuestKernel *k, uint64_t la) noexcept nogil:
    # the page that holds la goes; nothing happens where none is mapped
    cdef uint64_t table = k.root[k.current[0]], at, entry = 0
    cdef int level
    if la >> 47:
        return vcpu_abort(k.v, ABORT_ADDRESS, la)
    for level in range(4, 0, -1):
        at = table + ((la >> (9 * level + 3) & 511) << 3)
        if get(k, at, &entry):
            return DONE_ABORT
        if not entry & P:
            return DONE_OK
        if level == 1 or (level == 2 and entry & PS):
            break
        table = entry & FRAME
        if not own(k, table, 4096):
            return vcpu_abort(k.v, ABORT_GUEST_FAULT, la)
    if put(k, at, 0):
        return DONE_ABORT
    if level == 1:
        k.count[table >> 12] -= 1
    if not k.high or entry & FRAME >= k.next_block:     # else where a trace placed it: no page of the kernel's own
        if level == 2 and own(k, entry & FRAME & ~(<uint64_t> BLOCK - 1), BLOCK):
            give(&k.free_2m, entry & FRAME & ~(<uint64_t> BLOCK - 1))
        elif level == 1 and own(k, entry & FRAME, 4096):
            give(&k.free_4k, entry & FRAME)
    return shoot_down(k, la, 1, 12, False)
