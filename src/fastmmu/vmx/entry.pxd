# VM entry and VM exit (vmx.md §3, §4): VMLAUNCH, VMRESUME, and what a VM exit saves and loads.

from libc.stdint cimport uint64_t

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.vmx.processor cimport Processor

cdef enum FailedCheck:          # bits of Processor.failed beyond C1 to C18, which are bits 0 to 17
    FAILED_EVENT = 18           # event to inject
    FAILED_HOST = 20            # host state: CR0, CR4, CR3, PAT, EFER, address-space size
    FAILED_STATE = 32           # guest state: G1 to G6 are the next bits
    FAILED_RFLAGS = 39
    FAILED_INTERRUPTIBILITY = 40
    FAILED_ACTIVITY = 41
    FAILED_LINK = 42
    FAILED_MSR = 43

cdef enum:
    INTERRUPTION_VALID = 31     # bit number
    BLOCKED_BY_STI = 1
    BLOCKED_BY_MOV_SS = 2
    BLOCKED_BY_NMI = 8

cdef int processor_enter(Processor *p, bint resume, bint mov_ss) noexcept nogil
cdef int processor_exit(Vcpu *v) noexcept nogil         # the handler of exits: VMX root operation
cdef bint processor_left(Processor *p) noexcept nogil   # did the VM exit happen that this unwinds from? No more then
cdef void event_delivered(Processor *p, uint64_t info, uint64_t error_code, uint64_t cr2) noexcept nogil
