# The frames of a guest kernel as its configuration has them.

from fastmmu.machine.kernel_state cimport GuestKernel

cdef int frames_choose(GuestKernel *k, config) except -1
