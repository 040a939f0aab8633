# A miss of both levels of the TLB as most are. Not inline: the loop that asks this keeps its registers.

from libc.stdint cimport uint64_t

from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.paging.quick_walk cimport Quick

# What vcpu_slow() does with an access of the user's after MISSED, if its walk is a quick one (paging/quick_walk.pxd):
# the value that the TLB holds now; else MISSED, and nothing is done.
cdef uint64_t vcpu_quick(Vcpu *v, const Quick *q, uint64_t la, int acc) noexcept nogil
