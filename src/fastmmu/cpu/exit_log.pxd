# The log of VM exits: a record an exit, in a ring. It is written where exits are counted; what the VMM made of an exit
# is added by who knows it, in `ExitLog.last`.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmmu.arch.vmx cimport Vmcs

cdef struct ExitRecord:         # fastmmu.dtypes.EXIT_DTYPE
    uint64_t time               # accesses of the trace begun until then, of all vCPUs of the VM
    uint64_t qualification
    uint64_t gpa
    uint64_t gla
    uint64_t rip                # last instruction that the trace fetched
    double cycles               # of the cost model, which the kernels do not know
    uint32_t vcpu
    uint32_t intr_info
    uint32_t error_code
    uint16_t reason
    uint8_t fault_class         # FaultClass
    uint8_t kind                # of its cost: the exit reason, or N_REASONS + Priced

cdef enum:
    N_PRICED = 9

cdef struct ExitLog:
    ExitRecord *row             # [room]
    uint64_t room
    uint64_t keep               # so many stay, the last
    bint streams                # and those that the stream has not taken: the ring grows
    uint64_t total              # exits since the start,
    uint64_t taken              # of these, those that the stream has
    uint64_t dropped            # of these, those that it never got: no memory
    uint64_t next               # row of the next
    ExitRecord *last            # of the exit under way
    uint32_t vcpu               # that runs
    uint64_t others             # accesses of the vCPUs that do not
    # events under way, or records: what each does, and its address; op NULL: none are
    const uint8_t *op
    const uint8_t *addr
    size_t op_bytes, addr_bytes
    bint counted                # their accesses are counted as they are made, not at the end
    uint64_t first, n           # number of the first, and how many
    uint64_t at, accesses       # those that were looked at, and accesses among them
    uint64_t rip
    uint64_t before[N_PRICED]   # counters of the VMM when the handler began

cdef int exit_log_init(ExitLog *log, uint64_t keep) noexcept nogil
cdef void exit_log_free(ExitLog *log) noexcept nogil
cdef void exit_log_add(ExitLog *log, const Vmcs *vmcs, const uint64_t *ops, uint64_t now) noexcept nogil
cdef void exit_log_events(ExitLog *log, const uint8_t *op, size_t op_bytes, const void *addr, size_t addr_bytes,
                          uint64_t first, uint64_t n, bint counted) noexcept nogil
cdef void exit_log_done(ExitLog *log, uint64_t n) noexcept nogil        # so many of them
