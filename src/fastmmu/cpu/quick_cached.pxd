# vcpu_quick() of cpu/quick.pxd, with data caches under the walk.

from libc.stdint cimport uint64_t

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.paging.quick_walk cimport Quick

cdef uint64_t vcpu_quick_cached(Vcpu *v, const Quick *q, uint64_t la, int acc) noexcept nogil
