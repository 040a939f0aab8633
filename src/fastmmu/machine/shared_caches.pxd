# Data caches of the physical CPUs of a host, or of a system trace, on one L3 and memory.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.cache.hierarchy_py cimport CacheHierarchy
from fastmmu.machine.board cimport Board

cdef tuple caches_of_cpus(object config, uint32_t cpus, uint64_t nbytes, object turns)
cdef int caches_under(Board b, CacheHierarchy caches) except -1     # once its machine is made, before vCPUs are added
cdef void caches_here(Board b, CacheHierarchy caches, uint32_t number)
cdef int check_same(object config, object first) except -1
