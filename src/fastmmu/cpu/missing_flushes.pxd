# The detector of missing flushes as a Python object; the vCPU uses its `w`.

from fastmmu.cpu.stale cimport Detector


cdef class MissingFlushes:
    cdef Detector *w
