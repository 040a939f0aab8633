# Which 2 MB of a machine's memory the host has as one page.

from libc.stdint cimport uint64_t

from fastmmu.mmu.memslots cimport Memslot

cdef int host_blocks(Memslot *slot, config, uint64_t nbytes) except -1
