# A whole machine, written and read.

from fastmmu.machine.board cimport Board
from fastmmu.machine.checkpoint.archive cimport _Archive

cdef int keep_board(_Archive a, Board b) except -1
