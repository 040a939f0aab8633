# The frames of programs, written and read.

from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.machine.frames cimport Frames

cdef int keep_policy(_Archive a, Frames *f) except -1
