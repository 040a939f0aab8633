# A VM exit as the VMM in Python gets it.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.vmx.processor cimport Processor


cdef class Exit:
    cdef readonly uint64_t qualification, guest_physical, guest_linear, operand, value, done
    cdef readonly uint32_t exit_reason, interruption_info, error_code, vectoring_info, vectoring_error_code
    cdef readonly uint32_t instruction_length, instruction_info
    cdef uint64_t checks


cdef Exit exit_of(const Processor *p)
cdef object event_of(Processor *p)
cdef tuple failed_checks(uint64_t failed)
