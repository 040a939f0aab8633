from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.machine.kernel_state cimport GuestKernel

cdef int keep_thp(_Archive a, GuestKernel *k) except -1
