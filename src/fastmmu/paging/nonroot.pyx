"""Kernel of #VE and EPTP switching (ept.md §9). Header: paging/nonroot.pxd; for Python: paging/nonroot_py.pyx."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from fastmmu.arch.bits cimport SUPPRESS_VE
from fastmmu.arch.types cimport FAULT_EPT_VIOLATION
from fastmmu.paging.ept cimport EPTP_VALID, QUAL_GLA, eptp_defect
from fastmmu.paging.memory cimport mem_holds, mem_read64, mem_write64

cdef enum:
    REASON = 48                 # of the exit that #VE stands in for
    LIST_LENGTH = 512


cdef bint ve_due(const Mem *m, const Walk *w, uint64_t area) noexcept nogil:
    # an EPT violation whose deciding entry lets it become #VE, and an information area in memory that is free
    return (w.fault == FAULT_EPT_VIOLATION and not w.ept_entry & SUPPRESS_VE and not mem_read64(m, area) >> 32)


cdef void ve_save(Mem *m, const Walk *w, uint64_t la, uint64_t area, uint16_t eptp_index) noexcept nogil:
    mem_write64(m, area, REASON | <uint64_t> 0xFFFFFFFFU << 32)
    mem_write64(m, area + 8, w.qual)
    mem_write64(m, area + 16, la if w.qual & QUAL_GLA else 0)
    mem_write64(m, area + 24, w.gpa)
    mem_write64(m, area + 32, (mem_read64(m, area + 32) & ~(<uint64_t> 0xFFFF)) | eptp_index)


cdef int eptp_switch(const Mem *m, uint64_t eptp, int maxphyaddr, bint ad_supported, uint64_t eptp_list, uint32_t index,
                     uint64_t *switched) noexcept nogil:
    # the EPTP at an index of the list, if it may take the place of `eptp`
    cdef uint64_t entry
    if index >= LIST_LENGTH:
        return SWITCH_EXIT
    if not mem_holds(m, eptp_list + 8 * index, 8):
        return SWITCH_BUS
    entry = mem_read64(m, eptp_list + 8 * index)
    if (entry ^ eptp) >> 3 & 7 or eptp_defect(entry, maxphyaddr, ad_supported, True) != EPTP_VALID:
        return SWITCH_EXIT
    switched[0] = entry
    return SWITCH_DONE
