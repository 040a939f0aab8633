# Which entries an invalidation is about: their kinds, and what must be equal to the tags of their context.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.tlb.entries cimport K_EPSC, K_GLOBAL, K_GPM, K_LOCAL, K_PSC, NO_EPT, TlbContext

cdef enum:
    # kinds, as bits
    LOCAL = 1 << K_LOCAL
    GLOBAL = 1 << K_GLOBAL
    CACHES = 1 << K_PSC
    GUEST = (1 << K_GPM) | (1 << K_EPSC)
    # conditions that a context must meet
    THIS_VPID = 1
    THIS_PCID = 2               # not asked of global ones
    THIS_ROOT = 4
    NOT_VPID_0 = 8              # guest-physical ones, which have no VPID, are not selected by kind
    ANY_ROOT = 16               # made while EPT was in use
    THIS_ASID = 32              # of guest-physical ones too, which have it in the place of a root

cdef struct Which:
    uint32_t kinds
    uint32_t condition
    uint32_t vpid, pcid
    uint64_t eptrta


cdef inline bint selects(const Which *q, const TlbContext *x) noexcept nogil:
    cdef uint32_t c = q.condition
    if not q.kinds >> x.kind & 1:
        return False
    if c & THIS_VPID and x.vpid != q.vpid:
        return False
    if c & THIS_PCID and x.kind != K_GLOBAL and x.pcid != q.pcid:
        return False
    if c & THIS_ROOT and x.eptrta != q.eptrta:
        return False
    if c & NOT_VPID_0 and x.vpid == 0:
        return False
    if c & THIS_ASID and (x.eptrta != q.eptrta if GUEST >> x.kind & 1 else x.vpid != q.vpid):
        return False
    return not (c & ANY_ROOT and x.eptrta == NO_EPT)
