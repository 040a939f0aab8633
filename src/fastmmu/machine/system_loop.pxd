# A system trace on a virtual CPU: each record is carried out, and what comes of it compared with what the trace says.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.pferr cimport PF_ID, PF_U, PF_W
from fastmmu.arch.types cimport ACC_R, ACC_W, ACC_X, Mem
from fastmmu.cpu.may_hold cimport MayHold, Tables
from fastmmu.cpu.stale cimport Detector, stale_stored
from fastmmu.cpu.vcpu cimport BY_SUPERVISOR, BY_SYSTEM, BY_USER, Vcpu, vcpu_set_ac
from fastmmu.machine.records cimport REC_AC, REC_IMPLICIT, Record
from fastmmu.paging.memory cimport mem_holds

cdef enum Stop:                 # why replay_records returned before the last record
    STOP_NONE = 0
    STOP_REGISTER = 1           # CR0, CR4 or EFER: the caller does it and goes on behind it
    STOP_RECORD = 2             # malformed
    STOP_ADDRESS = 3            # not canonical
    STOP_DATA = 4               # values or pages used up
    STOP_TABLE = 5              # a page table outside guest memory
    STOP_ABORT = 6              # Vcpu.abort says why
    STOP_CPU = 7                # another CPU runs: the caller loads it, and goes on behind the record

cdef enum Difference:
    DIFF_ADDRESS = 0            # another physical address
    DIFF_FAULTED = 1            # a #PF where the trace has none
    DIFF_NO_FAULT = 2           # none where the trace has one
    DIFF_FAULT = 3              # another error code or CR2
    DIFF_FLAGS = 4              # of several CPUs: A or D was not set, and nothing that is held served the access
    DIFFERENCES = 5

cdef enum HeldUse:              # of several CPUs: one side goes by what the CPU may still hold, the other too, or not
    HELD_BOTH = 0
    HELD_TRACE = 1              # here by a walk now
    HELD_FAULT = 2              # a #PF here, which is what a walk now gives
    HELD_HERE = 3               # the trace has the address of a walk now
    HELD_NO_FAULT = 4           # it has a #PF
    HELD_USES = 5

cdef enum Omission:             # what is left out, to see what it was good for
    OMIT_CR3 = 1                # writes to CR3
    OMIT_STORES = 2             # stores to page tables

cdef struct Mismatch:
    uint64_t record
    uint64_t expected, got      # address, or error code of the #PF
    uint32_t kind               # Difference

cdef enum:
    EXAMPLES = 16

cdef struct Replay:
    Vcpu *v
    Mem guest                   # guest-physical memory as a window of host memory
    uint64_t guest_base         # host-physical address of guest-physical 0
    uint32_t omit               # Omission
    bint keys                   # CR4.PKE in long mode
    uint32_t pkru
    uint64_t data_at, page_at   # values and pages used
    uint64_t stores, faults, tables
    uint64_t differences[5]
    uint64_t found              # all of them
    Mismatch example[16]
    MayHold *h                  # of several CPUs: of the one that runs; else NULL
    Tables t                    # what all CPUs have changed of them
    uint64_t standing[3]        # [Standing] accesses, walks and #PFs of several CPUs
    uint64_t held[5]            # [HeldUse] those of STANDS_HELD
    uint64_t walks, ipis        # records
    uint64_t flags              # walks of the trace that set A or D, where here a held translation served
    Detector **detectors        # of missing flushes: of each CPU its own, or one
    uint32_t n_detectors
    uint8_t *written            # [gfn] stored to, by a store that was carried out here; NULL: nobody asks
    uint64_t n_written

cdef int replay_register(Vcpu *v, const Record *r) noexcept nogil      # of STOP_REGISTER: Outcome
cdef uint64_t replay_records(Replay *p, uint64_t first, const Record *rows, uint64_t n, const uint64_t *data,
                             uint64_t n_data, const uint8_t *pages, uint64_t n_pages, int *stop) noexcept nogil
# One record that is no access; a mismatch.
cdef int other(Replay *p, uint64_t record, const Record *r, const uint8_t *pages, uint64_t n_pages) noexcept nogil
cdef void differs(Replay *p, uint64_t record, int kind, uint64_t expected, uint64_t got) noexcept nogil


cdef inline int who(Replay *p, const Record *r, bint user) noexcept nogil:
    # by whose rights, after AC is what the record says
    cdef bint ac = r.flags & REC_AC != 0
    if user:
        return BY_USER
    if r.flags & REC_IMPLICIT:
        return BY_SYSTEM
    if ac != p.v.hw.ac:
        vcpu_set_ac(p.v, ac)
    return BY_SUPERVISOR


# the access of a #PF, by its error code, and by whose rights

cdef inline int fault_access(const Record *r) noexcept nogil:
    return ACC_X if r.aux & PF_ID else ACC_W if r.aux & PF_W else ACC_R


cdef inline int fault_user(Replay *p, const Record *r) noexcept nogil:
    return BY_SYSTEM if r.cpl == 3 and not r.aux & PF_U else who(p, r, r.aux & PF_U)


cdef inline int store(Replay *p, const Record *r, uint64_t value, uint64_t gpa) noexcept nogil:
    # A store into a page table. One that went astray is put where the trace has it: what it breaks later would be
    # counted twice.
    cdef uint32_t i
    p.stores += 1
    if p.omit & OMIT_STORES:
        return STOP_NONE
    if not mem_holds(&p.guest, gpa, r.size):
        return STOP_TABLE
    memcpy(p.guest.base + gpa, &value, r.size)
    for i in range(p.n_detectors):
        stale_stored(p.detectors[i], p.guest_base + gpa, p.v.now)
    return STOP_NONE
