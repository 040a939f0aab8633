# What is written of a machine, or read: one description of each struct serves both.
#
#   a.under("vcpu")                       names from here on begin so
#   a.u32("vpid", &x.vpid, 0xFFFF)        a member, and the most that it may be: written, or read and checked
#   a.flag("fresh", &x.fresh)
#   a.plain("c", &x.c, sizeof(x.c))       bytes of which every value is right, such as counters
#   a.same("memory", x.nbytes)            what the new machine has already: it must be equal
#   if a.loading: ...                     checks of what members say of each other
#
# Words go to one array, in the order of the description; their names go with them, so that a description that has
# changed is noticed. Nothing that is read is used before it was checked: `refuse` says why not.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef class _Archive:
    cdef readonly bint loading
    cdef readonly dict arrays           # name: NumPy array
    cdef list names                     # of the words
    cdef list values
    cdef Py_ssize_t at                  # words read
    cdef str prefix
    cdef void under(self, str prefix)
    cdef int word(self, str name, uint64_t *p, uint64_t least, uint64_t most) except -1
    cdef int u8(self, str name, uint8_t *p, uint64_t most=*) except -1
    cdef int u16(self, str name, uint16_t *p, uint64_t most=*) except -1
    cdef int u32(self, str name, uint32_t *p, uint64_t most=*) except -1
    cdef int u64(self, str name, uint64_t *p, uint64_t most=*) except -1
    cdef int number(self, str name, int *p, int least, int most) except -1
    cdef int flag(self, str name, bint *p) except -1
    cdef int same(self, str name, uint64_t value) except -1
    cdef int plain(self, str name, void *p, uint64_t n) except -1
    cdef int sparse(self, str name, void *p, uint64_t n) except -1
    cdef object put(self, str name, array)
    cdef object array(self, str name, dtype, n=*)
    cdef int refuse(self, str why) except -1
