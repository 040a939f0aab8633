# A system trace on a virtual CPU: each record is carried out, and what comes of it compared with what the trace says.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Mem
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.machine.records cimport Record

cdef enum Stop:                 # why replay_records returned before the last record
    STOP_NONE = 0
    STOP_REGISTER = 1           # CR0, CR4 or EFER: the caller does it and goes on behind it
    STOP_RECORD = 2             # malformed
    STOP_ADDRESS = 3            # not canonical
    STOP_DATA = 4               # values or pages used up
    STOP_TABLE = 5              # a page table outside guest memory
    STOP_ABORT = 6              # Vcpu.abort says why

cdef enum Difference:
    DIFF_ADDRESS = 0            # another physical address
    DIFF_FAULTED = 1            # a #PF where the trace has none
    DIFF_NO_FAULT = 2           # none where the trace has one
    DIFF_FAULT = 3              # another error code or CR2
    DIFFERENCES = 4

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
    uint64_t differences[4]
    uint64_t found              # all of them
    Mismatch example[16]

cdef int replay_register(Vcpu *v, const Record *r) noexcept nogil      # of STOP_REGISTER: Outcome
cdef uint64_t replay_records(Replay *p, uint64_t first, const Record *rows, uint64_t n, const uint64_t *data,
                             uint64_t n_data, const uint8_t *pages, uint64_t n_pages, int *stop) noexcept nogil
