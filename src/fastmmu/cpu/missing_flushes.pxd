# The detector of missing flushes as a Python object; the vCPU uses its `w`.

from fastmmu.cpu.stale cimport Detector
from fastmmu.threads.turns cimport Turns


cdef class MissingFlushes:
    cdef Detector *w
    cdef Turns turns            # of the machine
