# Where in host memory the parts of a machine lie: the VMM's pages and tables, the guest's memory, slots, vCPUs.

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.types cimport Mem

cdef enum:                      # host-physical pages of the VMM
    PML_LOG = 0x1000            # page 0 stays unused, so that no root is 0
    VIRTUAL_APIC = 0x2000
    POSTED_DESCRIPTOR = 0x3000
    PAE_ROOT = 0x4000           # PDPTEs of a shadowed guest of 32-bit addresses
    VMM_TABLES = 0x5000
    VCPU_BYTES = 0x2000         # of a vCPU with an APIC: virtual-APIC page, posted-interrupt descriptor

cdef bint has_identity(config, bint guest_kernel)
cdef uint64_t host_bytes(config) except 0
cdef uint64_t machine_bytes(config, slots) except 0
cdef list all_slots(config, bint guest_kernel, slots)
cdef tuple placed_slots(slots, end)
cdef object checked_place(place)


cdef inline bint overlaps(const uint64_t *words, uint64_t n, const Mem *mem) noexcept:
    return <const uint8_t *> words < mem.base + mem.nbytes and mem.base < <const uint8_t *> (words + n)
