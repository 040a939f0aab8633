# Nested paging of AMD, as far as it is no mask of `Ept` (npt.md): the walk is that of paging/ept.pxd.
#
#   63 NX | 62:52 ignored | 51:12 frame | 8 G | 7 PS/PAT | 6 D | 5 A | 4 PCD | 3 PWT | 2 U/S | 1 R/W | 0 P

from libc.stdint cimport uint64_t
from libc.string cimport memset

from fastmmu.arch.bits cimport FRAME, A, D, G, P, PS, RW, US, XD
from fastmmu.arch.pferr cimport PF_ID, PF_P, PF_RSVD, PF_U, PF_W
from fastmmu.arch.types cimport Ept

cdef extern from *:
    """
    #define FM_NPF_FINAL (1ULL << 32)
    #define FM_NPF_TABLE (1ULL << 33)
    """
    const uint64_t NPF_FINAL "FM_NPF_FINAL"     # EXITINFO1: of the guest's final physical address
    const uint64_t NPF_TABLE "FM_NPF_TABLE"     # of a paging structure of the guest


cdef inline void npt_of(Ept *e, uint64_t ncr3, int levels, int maxphyaddr, bint large_1g, bint nxe,
                        uint64_t pat) noexcept nogil:
    # the walk that nCR3 stands for under a host with these registers (npt.md §1, §2); what it does not say is off
    cdef int level
    memset(e, 0, sizeof(Ept))
    e.npt = 1
    e.frame = FRAME & ((1ULL << maxphyaddr) - 1)
    e.root = ncr3 & e.frame
    e.levels = levels
    e.ad = 1
    e.pat = pat
    e.accessed = A
    e.dirty = D
    e.present = P
    e.flip = XD
    e.ad_before_final = 1
    e.large_ok[2] = 1
    e.large_ok[3] = large_1g
    for level in range(1, 6):
        e.rsvd[level][0] = e.rsvd[level][1] = FRAME & ~e.frame | (0 if nxe else XD)
        if level > 3:
            e.rsvd[level][0] |= G
            e.rsvd[level][1] |= PS
    e.rsvd[3][0] |= G
    e.rsvd[3][1] |= 0x3FFFE000 if large_1g else PS
    e.rsvd[2][1] |= 0x1FE000


cdef inline uint64_t npt_rights(uint64_t entries) noexcept nogil:
    # what entries, NX flipped and ANDed, allow a user access: R, W, X as an EPT entry has them
    return ((entries & (P | RW)) | entries >> 63 << 2) & (0 - (entries >> 2 & 1))


cdef inline uint64_t npt_entries(uint64_t rights) noexcept nogil:
    # entries that allow this, flipped and ANDed; no rights: of the kernel
    return ~(RW | US | XD) | (rights & RW) | (rights & P) << 2 | (rights >> 2 & 1) << 63


cdef inline uint64_t npt_type(const Ept *e, uint64_t leaf, int level) noexcept nogil:
    # memory type by the host's PAT
    return e.pat >> 8 * ((leaf >> 3 & 3) | (leaf >> (7 if level == 1 else 12) & 1) << 2) & 7


cdef inline uint64_t npf_code(const Ept *e, bint write, bint fetch, bint final, bint present,
                              bint reserved) noexcept nogil:
    # EXITINFO1 (npt.md §4)
    return (PF_U | (PF_P if present else 0) | (PF_RSVD if reserved else 0) | (PF_W if write else 0)
            | (PF_ID if fetch and not e.rsvd[1][1] & XD else 0) | (NPF_FINAL if final else NPF_TABLE))
