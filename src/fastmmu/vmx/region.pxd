# VMCS regions in memory, and the fields of the current one: VMCLEAR, VMPTRLD, VMREAD, VMWRITE (SDM volume 3, chapter
# "VMX instruction reference"). Each returns an InstructionEnd or a VmInstructionError.

from libc.stdint cimport uint64_t

from fastmmu.vmx.processor cimport Processor

cdef int region_clear(Processor *p, uint64_t address) noexcept nogil
cdef int region_load(Processor *p, uint64_t address) noexcept nogil
cdef void region_launched(Processor *p) noexcept nogil
cdef bint region_is_launched(const Processor *p) noexcept nogil
cdef int field_check(const Processor *p, uint64_t encoding, bint write) noexcept nogil
cdef int field_read(Processor *p, uint64_t encoding, uint64_t *value) noexcept nogil
cdef int field_write(Processor *p, uint64_t encoding, uint64_t value) noexcept nogil
cdef int field_width(uint64_t encoding) noexcept nogil      # bits that VMWRITE takes; 0: no such field
cdef int field_slot(uint64_t encoding) noexcept nogil       # -1: none
cdef bint field_read_only(uint64_t encoding) noexcept nogil
cdef int field_in_core(uint64_t encoding, size_t *offset) noexcept nogil    # bytes of it in arch.vmx.Vmcs; 0: not there
