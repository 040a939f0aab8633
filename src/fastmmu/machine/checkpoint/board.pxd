# A whole machine, written and read.

from fastmmu.machine.board cimport Board
from fastmmu.machine.checkpoint.archive cimport Archive

cdef int keep_board(Archive a, Board b) except -1
