"""The guest kernel and what it runs on, the detector of missing flushes, the log of exits, written and read. Header:
guest.pxd."""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastmmu.arch.vmx cimport N_REASONS
from fastmmu.cpu.exit_log cimport N_PRICED, ExitLog, ExitRecord
from fastmmu.cpu.stale cimport STALE_EXAMPLES, STALE_KINDS, Detector, Stale
from fastmmu.kvm.kvm cimport CLASS_GUEST
from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.machine.checkpoint.frames cimport keep_policy
from fastmmu.machine.checkpoint.thp cimport keep_thp
from fastmmu.machine.events cimport Run
from fastmmu.machine.kernel_state cimport BLOCK, NO_FRAME, NO_PROCESS, PCIDS, FrameList, GuestCpu, GuestKernel
from fastmmu.machine.placed cimport PlacedPages, placed_free, placed_put
from fastmmu.paging.hash_table cimport HashTable, hash_free, hash_put

from fastmmu.errors import OutOfMemoryError

cdef enum:
    PROCESSES = 1 << 20
    OWED_KINDS = 6
    MOST_CPU = 1 << 20


cdef int keep_run(_Archive a, Run *run) except -1:
    # Run of machine/events.pxd. Of the new machine: vcpu kernel guest_base exit_every clock. With each batch: first
    a.under("run")
    a.same("guest_base", run.guest_base)
    a.same("exit_every", run.exit_every)
    a.u32("process", &run.process, PROCESSES - 1)
    a.u64("until_exit", &run.until_exit, run.exit_every)
    a.plain("c", &run.c, sizeof(run.c))
    if a.loading and run.kernel != NULL and (run.process >= run.kernel.n_roots or not run.kernel.root[run.process]):
        a.refuse(f"process {int(run.process)} runs, and has no tables")
    return 0


# ---- the guest kernel -------------------------------------------------------------------------------------

cdef int keep_kernel(_Archive a, GuestKernel *k) except -1:
    # GuestKernel of machine/kernel_state.pxd. Of the new machine: v c guest pages thp_threshold pcid high apic current
    # cpu shootdown lazy_tlb flush_ceiling. Of a host: omit_shootdown. Between two events: silent. Elsewhere: root
    # generation n_roots placed here thp
    a.under("kernel")
    a.same("pages", k.pages)
    a.same("thp_threshold", k.thp_threshold)
    a.same("high", k.high)
    a.same("code_gpa", k.code_gpa)
    a.same("rom_gpa", k.rom_gpa)
    a.same("kernel_pgd", k.kernel_pgd)
    a.flag("shared", &k.shared)
    a.u64("next_block", &k.next_block, k.guest.nbytes)
    a.u64("table_next", &k.table_next)
    a.u64("table_end", &k.table_end)
    a.u64("data_next", &k.data_next)
    a.u64("data_end", &k.data_end)
    keep_frames(a, k, "free_4k", &k.free_4k)
    keep_frames(a, k, "free_2m", &k.free_2m)
    keep_frames(a, k, "free_tables", &k.free_tables)
    keep_policy(a, &k.frames)
    keep_thp(a, k)
    keep_roots(a, k)
    a.same("n_cpus", k.n_cpus)
    keep_cpu(a, k, k.here)
    a.sparse("count", k.count, ((k.guest.nbytes >> 12) + 1) * 2)
    keep_placed(a, k)
    if a.loading:
        if k.next_block & (BLOCK - 1):
            a.refuse("guest memory is given out in blocks of 2 MB")
        check_rest(a, k, k.table_next, k.table_end)
        check_rest(a, k, k.data_next, k.data_end)
    return 0


cdef int keep_cpu(_Archive a, const GuestKernel *k, GuestCpu *x) except -1:
    # GuestCpu of machine/kernel_state.pxd. Of several vCPUs: owed n room overflow chosen; OwedFlush of
    # machine/kernel_state.pxd: la pages shift leave
    a.flag("cpu.online", &x.online)
    a.flag("cpu.lazy", &x.lazy)
    a.u32("cpu.process", &x.process)
    a.u64("cpu.generation", &x.generation)
    a.same("cpu.owes", x.n or x.overflow)
    if k.pcid:
        a.plain("cpu.pcid_owner", x.pcid_owner, PCIDS * 4)
        a.plain("cpu.pcid_generation", x.pcid_generation, PCIDS * 8)
    if a.loading and x.process != NO_PROCESS and x.process >= k.n_roots:
        a.refuse(f"the tables of process {int(x.process)} are loaded, and there are none")
    return 0


cdef int check_rest(_Archive a, const GuestKernel *k, uint64_t next, uint64_t end) except -1:
    # what is left of a block; both all ones: no memory was left for one
    if next == end and (end == NO_FRAME or not end):
        return 0
    if (next | end) & 0xFFF or next > end or end > k.guest.nbytes:
        a.refuse("the guest kernel gives out pages that are no memory")
    return 0


cdef int keep_frames(_Archive a, GuestKernel *k, str name, FrameList *x) except -1:
    # FrameList of machine/kernel_state.pxd. Derived: room
    cdef uint64_t i, n = x.n, last = k.guest.nbytes - (BLOCK if name == "free_2m" else 4096)
    cdef uint64_t[::1] to
    cdef const uint64_t[::1] of
    if not a.loading:
        to = a.put(name, np.empty(n, np.uint64))
        if n:
            memcpy(&to[0], x.frame, 8 * n)
        return 0
    of = a.array(name, np.uint64)
    n = of.shape[0]
    if n > k.guest.nbytes >> 12:
        a.refuse(f"{name} has more pages than there are")
    free(x.frame)
    x.n = x.room = 0
    x.frame = <uint64_t *> malloc(max(1, n) * sizeof(uint64_t))
    if x.frame == NULL:
        raise OutOfMemoryError("no memory for the guest kernel")
    for i in range(n):
        if of[i] & 0xFFF or of[i] > last:
            a.refuse(f"{name} has {int(of[i]):#x}, which is no page of guest memory")
        x.frame[i] = of[i]
    x.n = x.room = <uint32_t> n
    return 0


cdef int keep_roots(_Archive a, GuestKernel *k) except -1:
    # of each process its top table, and the generation of its address space
    cdef uint64_t i, n = k.n_roots
    cdef uint64_t[::1] to
    cdef const uint64_t[::1] of, generation
    if not a.loading:
        to = a.put("root", np.empty(n, np.uint64))
        memcpy(&to[0], k.root, 8 * n)
        to = a.put("generation", np.empty(n, np.uint64))
        memcpy(&to[0], k.generation, 8 * n)
        return 0
    of = a.array("root", np.uint64)
    n = of.shape[0]
    generation = a.array("generation", np.uint64, n)
    if not n or n > PROCESSES + 64:
        a.refuse("more processes than there can be, or none")
    free(k.root)
    free(k.generation)
    k.n_roots = 0
    k.root, k.generation = <uint64_t *> malloc(n * sizeof(uint64_t)), <uint64_t *> malloc(n * sizeof(uint64_t))
    if k.root == NULL or k.generation == NULL:
        raise OutOfMemoryError("no memory for the guest kernel")
    for i in range(n):
        if of[i] & 0xFFF or of[i] > k.guest.nbytes - 4096:
            a.refuse(f"the top table of process {int(i)} is no page of guest memory")
        k.root[i], k.generation[i] = of[i], generation[i]
    k.n_roots = <uint32_t> n
    return 0


cdef int keep_placed(_Archive a, GuestKernel *k) except -1:
    # PlacedPages of machine/placed.pxd. Derived: n room end
    cdef PlacedPages *p = &k.placed
    cdef uint64_t i, at = 0, key
    cdef uint64_t[::1] keys, frames
    cdef const uint64_t[::1] of, frame
    a.u64("placed.pending", &p.pending)
    if not a.loading:
        pages = np.empty((2, p.n), np.uint64)
        keys, frames = pages[0], pages[1]
        for i in range(p.room):
            if p.key[i]:
                keys[at], frames[at] = p.key[i], p.frame[i]
                at += 1
        order = np.argsort(pages[0])
        a.put("placed.key", pages[0][order])
        a.put("placed.frame", pages[1][order])
        return 0
    of, frame = a.array("placed.key", np.uint64), a.array("placed.frame", np.uint64)
    if frame.shape[0] != of.shape[0] or (of.shape[0] and not k.high):
        a.refuse("pages are placed nowhere")
    if p.pending != NO_FRAME and p.pending >> 47:
        a.refuse("a page is to be placed at no address of a program")
    at = p.pending
    placed_free(p)
    p.pending = at
    for i in range(<uint64_t> of.shape[0]):
        key = of[i]
        if not key >> 63 or frame[i] & 0xFFF or frame[i] > k.guest.nbytes - (BLOCK if key & 1 else 4096):
            a.refuse("a page is placed where no memory is")
        # process, page, and whether it is of 2 MB, as placed_put has them
        if placed_put(p, key >> 40 & (PROCESSES - 1), (key >> 1 & (1ULL << 39) - 1) << (21 if key & 1 else 12), key & 1,
                      frame[i]):
            raise OutOfMemoryError("no memory for the pages that the trace places")
    return 0


# ---- the detector -----------------------------------------------------------------------------------------

cdef int keep_detector(_Archive a, Detector *d) except -1:
    # Detector of cpu/stale.pxd. Of the new machine: shadow svm. Refused: agile
    cdef uint64_t i
    a.under("detector")
    a.u64("uses", &d.uses)
    a.u64("found", &d.found)
    a.plain("by_kind", d.by_kind, sizeof(d.by_kind))
    a.plain("by_owed", d.by_owed, sizeof(d.by_owed))
    a.u64("examples", &d.examples, STALE_EXAMPLES)
    a.u32("last_kind", &d.last_kind, STALE_KINDS - 1)
    a.u32("last_owed", &d.last_owed, OWED_KINDS - 1)
    a.flag("last_kept", &d.last_kept)
    a.plain("example", d.example, d.examples * sizeof(Stale))
    keep_hash(a, "seen", &d.seen)
    keep_hash(a, "stored", &d.stored)
    for i in range(d.examples if a.loading else 0):
        # Stale, Seen, Stored of cpu/stale.pxd: whole
        if d.example[i].kind >= STALE_KINDS or d.example[i].owed >= OWED_KINDS:
            a.refuse("a stale use is of no kind")
    return 0


cdef int keep_hash(_Archive a, str name, HashTable *h) except -1:
    # HashTable of paging/hash_table.pxd, by its structs. Of the new machine: size. Derived: slots n used
    cdef uint64_t i, key, at = 0
    cdef uint8_t[::1] to
    cdef const uint8_t[::1] of
    cdef uint64_t *slot
    if not a.loading:
        rows = np.empty((h.used, h.size), np.uint8)
        to = rows.reshape(-1)
        for i in range(h.n):
            slot = <uint64_t *> (h.slots + i * h.size)
            if slot[0]:
                memcpy(&to[at], slot, h.size)
                at += h.size
        a.put(name, rows[np.argsort(rows.view(np.uint64)[:, 0])].reshape(-1))
        return 0
    of = a.array(name, np.uint8)
    hash_free(h)
    if of.shape[0] % h.size:
        a.refuse(f"{name} ends within a row")
    for i in range(<uint64_t> of.shape[0] // h.size):
        memcpy(&key, &of[i * h.size], 8)
        if not key:
            a.refuse(f"{name} has a row without a key")
        slot = <uint64_t *> hash_put(h, key)
        if slot == NULL:
            raise OutOfMemoryError("no memory for the detector of missing flushes")
        memcpy(slot, &of[i * h.size], h.size)
    return 0


# ---- the log of exits -------------------------------------------------------------------------------------

cdef int keep_log(_Archive a, ExitLog *log) except -1:
    # ExitLog of cpu/exit_log.pxd: the rows that are kept. Of the new machine: room keep. A stream begins anew: streams
    # taken dropped. Derived: next last vcpu others. Under way: op addr op_bytes addr_bytes counted first n at accesses
    # before
    cdef uint64_t i, n = min(log.total, log.keep), first = (log.next + log.room - n) % log.room
    cdef uint8_t[::1] to
    cdef const uint8_t[::1] of
    cdef const ExitRecord *r
    cdef uint64_t size = sizeof(ExitRecord)
    a.under("log")
    a.same("keep", log.keep)
    a.u64("total", &log.total)
    a.u64("rip", &log.rip)
    if not a.loading:
        to = a.put("row", np.empty(n * size, np.uint8))
        for i in range(n):
            memcpy(&to[i * size], log.row + (first + i) % log.room, size)
        return 0
    n = min(log.total, log.keep)
    of = a.array("row", np.uint8, n * size)
    if n:
        memcpy(log.row, &of[0], n * size)
    log.next = n % log.room
    log.last = NULL
    for i in range(n):
        # ExitRecord of cpu/exit_log.pxd: whole
        r = log.row + i
        if r.reason >= N_REASONS or r.kind >= N_REASONS + N_PRICED or r.fault_class > CLASS_GUEST or r.vcpu >= MOST_CPU:
            a.refuse("an exit of the log is of no reason or kind")
    return 0
