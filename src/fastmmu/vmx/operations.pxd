# Operations of a guest: which there are, which of its instructions exit.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.vmx cimport Vmcs

cdef enum OpFault:              # what is wrong with an operation
    BAD_NOTHING = 0
    BAD_UNKNOWN = 1
    BAD_OF_TRACES = 2            # only a machine with a guest kernel has it
    BAD_NO_INSTRUCTION = 3       # EXIT with a reason that no instruction has
    BAD_HAS_OWN = 4              # EXIT with a reason whose instruction is an operation of its own
    BAD_SIZE = 5                 # more bytes than an element of the data has

cdef int operations_check(const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t n, bint moves,
                          uint64_t *bad) noexcept nogil
cdef bint instruction_privileged(uint64_t reason) noexcept nogil
cdef bint instruction_exits(const Vmcs *vmcs, uint64_t reason) noexcept nogil
