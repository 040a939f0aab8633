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
from fastmmu.arch.types cimport Mem
from fastmmu.cpu.apic cimport APIC_BASE
from fastmmu.cpu.tpr_patch cimport SITE_BYTES, SITES, patch_original
from fastmmu.cpu.control cimport vcpu_mov_cr3
from fastmmu.cpu.vcpu cimport (
    ABORT_ADDRESS, ABORT_GUEST_FAULT, ABORT_GUEST_MEMORY, ABORT_HOST_MEMORY, ABORT_PROCESS, DONE_ABORT, DONE_OK, Vcpu,
    vcpu_abort,
)
from fastmmu.kvm.kvm cimport to_kvm_vcpu
from fastmmu.machine.compaction cimport compact_behind
from fastmmu.machine.frames cimport FRAMES_FIRST_TOUCH, frames_free
from fastmmu.machine.guest_ranges cimport ranges_copy, ranges_write
from fastmmu.machine.kernel_memory cimport (
    give_page, kernel_clear, kernel_read, kernel_write, new_data, new_table, own,
)
from fastmmu.machine.kernel_state cimport (
    BLOCK, DEFRAG_DEFER, DIRECT_MAP, LARGE_FRAME, NO_FRAME, NO_PROCESS, PAGES_2M, PAGES_POLICY, PAGES_THP, Advice,
    GuestCounters, GuestCpu, GuestKernel,
)
from fastmmu.machine.placed cimport placed_frame, placed_free, placed_put
from fastmmu.machine.shootdown cimport (
    shoot_down, shoot_flush, shoot_free, shoot_leave, shoot_loaded, shoot_new_cpu, shoot_serve,
)
from fastmmu.machine.thp cimport thp_block, thp_collapse, thp_free, thp_inherit, thp_suits, thp_table
from fastmmu.paging.memory cimport mem_read64

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
    k.frames.first = guest.nbytes
    k.thp.advice.size = sizeof(Advice)
    k.thp.scan_process = NO_PROCESS
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
    frames_free(&k.frames)
    thp_free(k)
    free(k.root)
    free(k.generation)
    free(k.free_4k.frame)
    free(k.free_2m.frame)
    free(k.free_tables.frame)
    memset(k, 0, sizeof(GuestKernel))


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
            kernel_write(k, pgd + ((DIRECT_MAP + gpa >> 39 & 511) << 3), pdpt | P | RW | A | D)
        if gpa & ((1ULL << 30) - 1) == 0:
            if new_table(k, &pd):
                return DONE_ABORT
            kernel_write(k, pdpt + ((gpa >> 30 & 511) << 3), pd | P | RW | A | D)
        kernel_write(k, pd + ((gpa >> 21 & 511) << 3), gpa | P | RW | A | D | PS | G | XD)
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
            kernel_write(k, at, entry)
        table = entry & FRAME
    return kernel_write(k, table + ((la >> 12 & 511) << 3), leaf | P | RW | A | D | G)


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
        if entry and kernel_write(k, pgd + 8 * i, entry):
            return DONE_ABORT
    k.root[process] = pgd
    return DONE_OK


cdef int kernel_fork(GuestKernel *k, uint64_t child) noexcept nogil:
    # A process that shares all pages of the current one until either writes them (dup_mmap, copy_page_range): both lose
    # the right to write.
    if child >= 1 << 20:
        return vcpu_abort(k.v, ABORT_PROCESS, child)
    if child < k.n_roots and k.root[child]:
        return vcpu_abort(k.v, ABORT_FORK, child)
    if new_root(k, child) or ranges_copy(k, k.root[k.current[0]], k.root[child], 4):
        return DONE_ABORT
    k.c.forks += 1
    if thp_inherit(k, k.current[0], <uint32_t> child):
        return DONE_ABORT
    return shoot_down(k, k.current[0], 0, 0, 0, False)


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
    shoot_leave(k, me)
    k.c.cr3_flushes += 1
    k.v.c.cr3_switches -= 1
    return vcpu_mov_cr3(k.v, k.kernel_pgd | (CR3_NO_FLUSH if k.pcid else 0))


# ---- demand paging ----------------------------------------------------------------------------------------

cdef int next_table(GuestKernel *k, uint64_t at, uint64_t *table) noexcept nogil:
    # the table that the entry at guest-physical address `at` points to, made where there is none
    cdef uint64_t entry = 0
    if kernel_read(k, at, &entry):
        return DONE_ABORT
    if not entry & P:
        if new_table(k, table):
            return DONE_ABORT
        return kernel_write(k, at, table[0] | USER_TABLE)
    table[0] = entry & FRAME
    return DONE_OK if own(k, table[0], 4096) else vcpu_abort(k.v, ABORT_GUEST_FAULT, at)


cdef int kernel_collapse(GuestKernel *k, uint64_t la) noexcept nogil:
    # the pages of a table become one of 2 MB now (khugepaged); nothing happens where that cannot be
    cdef uint64_t table = 0, at = 0
    cdef bint none
    if la >> 47:
        return vcpu_abort(k.v, ABORT_ADDRESS, la)
    if k.placed.n:
        return DONE_OK
    if thp_table(k, k.current[0], la, &at, &table):
        return DONE_ABORT
    return thp_collapse(k, k.current[0], la, at, table, &none) if table and k.count[table >> 12] else <int> DONE_OK


cdef int kernel_page_fault(GuestKernel *k, uint64_t la, uint32_t error_code) noexcept nogil:
    # error_code: of the #PF; only "not present" has an answer, every page of a program allows all it does
    cdef uint64_t pdpt = 0, pd = 0, pt = 0, frame, entry = 0
    cdef uint64_t dirty = D if error_code & PF_W or k.silent else 0
    cdef bint large = k.pages == PAGES_2M, none, behind = False
    cdef int i
    if la >> 47:
        return vcpu_abort(k.v, ABORT_ADDRESS, la)
    if error_code & PF_P:
        if k.shared and error_code & PF_W:
            return ranges_write(k, la)
        return vcpu_abort(k.v, ABORT_GUEST_FAULT, la)
    if next_table(k, k.root[k.current[0]] + ((la >> 39 & 511) << 3), &pdpt):
        return DONE_ABORT
    if next_table(k, pdpt + ((la >> 30 & 511) << 3), &pd):
        return DONE_ABORT
    k.c.pages_touched += 1
    frame = placed_frame(&k.placed, k.current[0], la, &large)
    if k.pages == PAGES_POLICY:
        large = thp_suits(k, k.current[0], la)
    if large and (k.placed.n or k.frames.policy != FRAMES_FIRST_TOUCH or k.pages == PAGES_POLICY):
        # pages of 4 KB may stand there
        if kernel_read(k, pd + ((la >> 21 & 511) << 3), &entry):
            return DONE_ABORT
        if entry & P:
            large = False
            if frame != NO_FRAME:
                frame |= la & 0x1FF000
    if large and frame == NO_FRAME:
        if thp_block(k, k.current[0], la, True, &frame):
            return DONE_ABORT
        k.c.thp_fault_alloc += frame != NO_FRAME
        if frame == NO_FRAME:
            if k.frames.policy == FRAMES_FIRST_TOUCH and k.pages == PAGES_2M:
                return vcpu_abort(k.v, ABORT_GUEST_MEMORY, k.guest.nbytes)
            k.c.thp_fault_fallback += 1
            large = False
            behind = k.thp.defrag == DEFRAG_DEFER
    if large:
        if not k.silent:
            for i in range(512):
                if kernel_clear(k, frame + 4096 * i, False):
                    return DONE_ABORT
        return kernel_write(k, pd + ((la >> 21 & 511) << 3), frame | P | RW | US | A | PS | dirty)
    if next_table(k, pd + ((la >> 21 & 511) << 3), &pt):
        return DONE_ABORT
    if frame == NO_FRAME:
        frame = new_data(k, la)
        if frame == NO_FRAME:
            return vcpu_abort(k.v, ABORT_GUEST_MEMORY, k.guest.nbytes)
    if kernel_clear(k, frame, False):
        return DONE_ABORT
    if kernel_write(k, pt + ((la >> 12 & 511) << 3), frame | P | RW | US | A | dirty):
        return DONE_ABORT
    k.count[pt >> 12] += 1
    if behind:
        return compact_behind(k)
    if k.pages == PAGES_THP and k.count[pt >> 12] == k.thp_threshold and not k.placed.n:
        return thp_collapse(k, k.current[0], la, pd + ((la >> 21 & 511) << 3), pt, &none)
    return DONE_OK


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
        if kernel_read(k, at, &entry):
            return DONE_ABORT
        if not entry & P:
            return DONE_OK
        if level == 1 or (level == 2 and entry & PS):
            break
        table = entry & FRAME
        if not own(k, table, 4096):
            return vcpu_abort(k.v, ABORT_GUEST_FAULT, la)
    if kernel_write(k, at, 0):
        return DONE_ABORT
    if level == 1:
        k.count[table >> 12] -= 1
    give_page(k, entry & (LARGE_FRAME if level == 2 else FRAME), level == 2)
    return shoot_down(k, k.current[0], la, 1, 12, False)
