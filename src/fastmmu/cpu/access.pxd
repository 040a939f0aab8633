# A guest's access to data, of known size: memory, the APIC-access page, or what the VMM completes.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.cpu.vcpu cimport Vcpu

cdef struct Data:
    uint64_t la
    int acc                     # Access
    int user                    # Who
    uint32_t size               # 1, 2, 4, 8 or 16
    # A load or store moves data between `bytes` and memory; else only the APIC sees a value: 0, or of a
    # read-modify-write what it read.
    bint moves
    uint8_t bytes[16]           # stored, or loaded
    bint known                  # they hold what was loaded
    uint64_t hpa                # of the first byte
    uint64_t emulated           # guest-physical address where the VMM completed the access; all ones: not known
    bint apic                   # it met the APIC-access page
    int sent                    # vector of a self-IPI that the processor virtualized, -1: none

cdef void data_begin(Data *d, uint64_t la, int acc, int user, uint32_t size) noexcept nogil
cdef void data_store(Data *d, uint64_t la, int user, uint32_t size, uint64_t value) noexcept nogil
cdef int data_access(Vcpu *v, Data *d) noexcept nogil
cdef uint64_t data_value(const Data *d) noexcept nogil      # its low 8 bytes


cdef inline bint data_size(uint32_t size) noexcept nogil:
    return size == 1 or size == 2 or size == 4 or size == 8 or size == 16
