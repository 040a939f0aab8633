"""The VPIDs of a host; header: kvm/vpid.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport ctzll


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
