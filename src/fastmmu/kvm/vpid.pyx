"""Kernel of the VPID allocator; header: kvm/vpid.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport ctzll

from fastmmu.errors import StateError


cdef void vpid_init(VpidMap *m) noexcept nogil:
    memset(m, 0xFF, sizeof(VpidMap))
    m.free[0] = ~(<uint64_t> 1)                 # the host
    m.used = 0


cdef uint32_t vpid_alloc(VpidMap *m) noexcept nogil:
    cdef uint32_t i, word, bit
    for i in range(16):
        if m.some[i]:
            word = 64 * i + ctzll(m.some[i])
            bit = ctzll(m.free[word])
            m.free[word] &= m.free[word] - 1
            if not m.free[word]:
                m.some[i] &= m.some[i] - 1
            m.used += 1
            return 64 * word + bit
    return 0


cdef bint vpid_free(VpidMap *m, uint32_t vpid) noexcept nogil:
    cdef uint32_t word = vpid >> 6
    cdef uint64_t bit = <uint64_t> 1 << (vpid & 63)
    if vpid >= VPIDS or m.free[word] & bit or vpid == 0:
        return False
    m.free[word] |= bit
    m.some[word >> 6] |= <uint64_t> 1 << (word & 63)
    m.used -= 1
    return True


cdef class VpidAllocator:
    """The VPIDs of one host, as KVM gives them out: lowest free number first, 0 where none is left.

    A vCPU with VPID 0 runs with "enable VPID" off: every VM entry and exit flushes. Freeing flushes nothing; whoever
    gets the number next is flushed when it first runs (tlb.md §6).
    """

    cdef VpidMap map

    def __cinit__(self):
        vpid_init(&self.map)

    def alloc(self):
        """The lowest VPID that nobody has, 1..65535; 0: all are taken."""
        return vpid_alloc(&self.map)

    def free(self, uint32_t vpid):
        """Gives one back; 0, which stands for none, is ignored.

        :raises StateError: nobody has it.
        """
        if vpid and not vpid_free(&self.map, vpid):
            raise StateError(f"VPID {vpid} is not given out; free what alloc() returned, once")

    def __len__(self):
        return self.map.used

    def __contains__(self, vpid):
        if not 0 <= vpid < VPIDS:
            return False
        return not self.map.free[<uint32_t> vpid >> 6] >> (<uint32_t> vpid & 63) & 1
