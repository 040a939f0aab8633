"""Transparent huge pages of the host: which 2 MB of a machine's memory are one page; header: host_blocks.pxd. The
specification is fastmmu.reference.cache.frame_map.whole_blocks.
"""

from libc.stdint cimport uint64_t

from fastmmu._zeroed cimport zeroed
from fastmmu.arch.permutation cimport permuted
from fastmmu.cache.frame_map cimport FrameMap, frame_map_init
from fastmmu.mmu.memslots cimport Memslot

from fastmmu.errors import OutOfMemoryError


cdef int host_blocks(Memslot *slot, config, uint64_t nbytes) except -1:
    # those that Config(host_frames=) leaves whole; the map is of all of the host's memory, nbytes
    cdef FrameMap m
    cdef uint64_t i, block
    if config.host_thp is None:
        return 0
    slot.whole = <uint64_t *> zeroed((slot.npages >> 15) + 1, sizeof(uint64_t))
    if slot.whole == NULL:
        raise OutOfMemoryError(f"no memory for the host's huge pages; make memory={config.memory!r} smaller")
    frame_map_init(&m, config.host_frames, nbytes, 12)
    for i in range(slot.npages >> 9 if config.host_thp == "always" else 0):
        block = (slot.hpa >> 21) + i
        if not m.broken or permuted(&m.blocks, block) << 9 >= m.broken:
            slot.whole[i >> 6] |= <uint64_t> 1 << (i & 63)
    return 0
