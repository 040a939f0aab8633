# The guest kernel and what it runs on, the detector of missing flushes, the log of exits, written and read.

from fastmmu.cpu.exit_log cimport ExitLog
from fastmmu.cpu.stale cimport Detector
from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.machine.events cimport Run
from fastmmu.machine.kernel_state cimport GuestKernel

cdef int keep_run(_Archive a, Run *run) except -1
cdef int keep_kernel(_Archive a, GuestKernel *k) except -1
cdef int keep_detector(_Archive a, Detector *d) except -1
cdef int keep_log(_Archive a, ExitLog *log) except -1
