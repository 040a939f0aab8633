# The data caches of a CPU, written and read.

from fastmmu.cache.hierarchy cimport Caches
from fastmmu.machine.checkpoint.archive cimport _Archive

cdef int keep_caches(_Archive a, Caches *c) except -1
