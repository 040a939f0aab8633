"""The log of VM exits: a ring that keeps the last, and grows where a stream takes them.

The time of an exit is found by looking at the events since the exit before, so that a run without a log pays nothing.
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

from fastmmu._zeroed cimport zeroed, zeroed_free
from fastmmu.arch.ops cimport LAST_ACCESS, OP_FETCH
from fastmmu.arch.vmx cimport EXIT_EXCEPTION_NMI, EXIT_INVLPG, INTERRUPTION_PF, Vmcs

cdef enum:
    ROOM = 1 << 12              # records of a stream at first


cdef int exit_log_init(ExitLog *log, uint64_t keep) noexcept nogil:
    # -1: no memory
    memset(log, 0, sizeof(ExitLog))
    log.keep = keep
    log.room = keep if keep else <uint64_t> ROOM
    log.row = <ExitRecord *> zeroed(log.room, sizeof(ExitRecord))
    return -1 if log.row == NULL else 0


cdef void exit_log_free(ExitLog *log) noexcept nogil:
    zeroed_free(log.row)
    log.row = NULL


cdef bint grow(ExitLog *log) noexcept nogil:
    # twice the room, the oldest first
    cdef uint64_t head = log.room - log.next
    cdef ExitRecord *row = <ExitRecord *> zeroed(2 * log.room, sizeof(ExitRecord))
    if row == NULL:
        return False
    memcpy(row, log.row + log.next, head * sizeof(ExitRecord))
    memcpy(row + head, log.row, log.next * sizeof(ExitRecord))
    zeroed_free(log.row)
    log.row = row
    log.next = log.room
    log.room *= 2
    return True


cdef void look(ExitLog *log, uint64_t n) noexcept nogil:
    # events up to the n-th: which are accesses, and which was the last fetch
    cdef uint64_t i
    cdef uint8_t op
    for i in range(log.at, n):
        op = log.op[i * log.op_bytes]
        log.accesses += op <= LAST_ACCESS
        if op == OP_FETCH:
            memcpy(&log.rip, log.addr + i * log.addr_bytes, 8)
    log.at = max(log.at, n)


cdef void exit_log_events(ExitLog *log, const uint8_t *op, size_t op_bytes, const void *addr, size_t addr_bytes,
                          uint64_t first, uint64_t n, bint counted) noexcept nogil:
    log.op = op
    log.op_bytes = op_bytes
    log.addr = <const uint8_t *> addr
    log.addr_bytes = addr_bytes
    log.first = first
    log.n = n
    log.counted = counted
    log.at = log.accesses = 0


cdef void exit_log_done(ExitLog *log, uint64_t n) noexcept nogil:
    look(log, n)
    log.op = NULL
    log.accesses = 0


cdef void exit_log_add(ExitLog *log, const Vmcs *vmcs, const uint64_t *ops, uint64_t now) noexcept nogil:
    # ops: accesses of the vCPU as they are counted; now: number of the event under way
    cdef ExitRecord *r
    cdef bint full = log.streams and log.total >= log.room and log.total - log.room >= log.taken
    if full and not grow(log):          # what the next would replace was not taken
        log.taken += 1
        log.dropped += 1
    if log.op != NULL and now - log.first < log.n:
        look(log, now - log.first + 1)
    r = log.last = log.row + log.next
    log.next += 1
    if log.next == log.room:
        log.next = 0
    log.total += 1
    r.time = log.others + ops[0] + ops[1] + ops[2] + ops[3]
    if not log.counted:
        r.time += log.accesses
    r.qualification = vmcs.exit_qualification
    r.gpa = vmcs.guest_physical_address
    r.gla = vmcs.guest_linear_address
    if (vmcs.exit_reason == EXIT_INVLPG
            or (vmcs.exit_reason == EXIT_EXCEPTION_NMI and vmcs.exit_interruption_info == INTERRUPTION_PF)):
        r.gla = vmcs.exit_qualification
    r.rip = log.rip
    r.cycles = 0
    r.vcpu = log.vcpu
    r.intr_info = vmcs.exit_interruption_info
    r.error_code = vmcs.exit_interruption_error
    r.reason = <uint16_t> vmcs.exit_reason
    r.fault_class = 0
    r.kind = <uint8_t> vmcs.exit_reason
