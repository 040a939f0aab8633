"""The VPIDs of a host; header: kvm/vpid.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport ctzll


cdef void vpid_init(VpidMap *m) noexcept nogil:
    memset(m, 0xFF, sizeof(VpidMap))
    m.free[0] = ~(<uint64_t> 1)                 # the host
    m.used = 0


cdef uint32_t vpid_first(const VpidMap *m) noexcept nogil:
    cdef uint32_t i, word
    for i in range(16):
        if m.some[i]:
            word = 64 * i + ctzll(m.some[i])
            return 64 * word + ctzll(m.free[word])
    return VPIDS


cdef bint vpid_is_free(const VpidMap *m, uint32_t vpid) noexcept nogil:
    return m.free[vpid >> 6] >> (vpid & 63) & 1


cdef bint vpid_take(VpidMap *m, uint32_t vpid) noexcept nogil:
    cdef uint32_t word = vpid >> 6
    if not vpid_is_free(m, vpid):
        return False
    m.free[word] ^= <uint64_t> 1 << (vpid & 63)
    if not m.free[word]:
        m.some[word >> 6] ^= <uint64_t> 1 << (word & 63)
    m.used += 1
    return True


cdef uint32_t vpid_alloc(VpidMap *m) noexcept nogil:
    cdef uint32_t vpid = vpid_first(m)
    return vpid if vpid < VPIDS and vpid_take(m, vpid) else 0


cdef bint vpid_free(VpidMap *m, uint32_t vpid) noexcept nogil:
    cdef uint32_t word = vpid >> 6
    cdef uint64_t bit = <uint64_t> 1 << (vpid & 63)
    if vpid == 0 or vpid >= VPIDS or m.free[word] & bit:
        return False
    m.free[word] |= bit
    m.some[word >> 6] |= <uint64_t> 1 << (word & 63)
    m.used -= 1
    return True
