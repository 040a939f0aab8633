# Memory slots, and what the host has behind their pages, written and read.

from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.mmu.memslots cimport Memslots, Ring

cdef int keep_slots(_Archive a, Memslots *s) except -1
