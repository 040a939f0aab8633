# What VMX non-root operation makes of EPT without an exit: #VE and EPTP switching by VMFUNC (ept.md §9).

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Ept, Mem, Walk

cdef enum Switched:
    SWITCH_DONE = 0
    SWITCH_EXIT = 1             # exit 59
    SWITCH_BUS = 2              # the list lies outside memory

cdef enum:
    VE_AREA = 40                # bytes of the information area that are looked at; 34 are written


cdef bint ve_due(const Mem *m, const Walk *w, uint64_t area) noexcept nogil
cdef void ve_save(Mem *m, const Walk *w, uint64_t la, uint64_t area, uint16_t eptp_index) noexcept nogil
cdef int eptp_switch(const Mem *m, uint64_t eptp, int maxphyaddr, bint ad_supported, uint64_t eptp_list, uint32_t index,
                     uint64_t *switched) noexcept nogil
