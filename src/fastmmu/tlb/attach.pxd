# A geometry's extensions, made for a TLB.

from libc.stdint cimport uint64_t

from fastmmu.tlb.entries cimport Tlb

cdef int attach(Tlb *t, object extensions) except -1    # of fastmmu.tlb.extensions
cdef void detach(Tlb *t) noexcept
cdef dict counters_of_extensions(Tlb *t)
cdef void reset_extensions(Tlb *t) noexcept
# What queries find where no processor walks; all arrays of one length, la sorted.
cdef int set_pages(Tlb *t, const uint64_t[::1] la, const uint64_t[::1] value, const uint64_t[::1] gpa) except -1
