# Arguments of public calls, checked once where Python enters (_arguments.pyx). `kind`: the error of a wrong value, of
# fastmmu.errors; default StateError.

from libc.stdint cimport uint8_t, uint64_t

cpdef object whole(str name, object value)
cpdef uint64_t within(str name, object value, uint64_t low, uint64_t high, object kind=*) except? 0xBAD
cpdef bint flag(str name, object value) except -1
cpdef object choice(str name, object value, object choices, object kind=*)
cpdef object instance(str name, object value, object kind)
cpdef str shown(object value)
cpdef str counted(object number)
cdef uint64_t word(str name, object value) except? 0xBAD
cdef uint64_t linear_address(str name, object value) except? 0xBAD
cdef uint64_t physical_address(str name, object value) except? 0xBAD
cdef uint64_t guest_physical_address(str name, object value) except? 0xBAD
cdef uint64_t page_address(str name, object value) except? 0xBAD
cpdef list many(str name, object values, object kind=*)
cdef int aligned(str name, const void *at, object kind) except -1
cdef const uint8_t[::1] bytes_in(str name, object value, object kind=*)
cdef uint8_t[::1] bytes_out(str name, object value, object kind=*)
cdef const uint64_t[::1] words_in(str name, object value, object kind=*)
cdef uint64_t[::1] words_out(str name, object value, object kind=*)
