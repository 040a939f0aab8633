# Bits of paging-structure entries and control registers, named as the architecture names them.
# 64-bit masks carry ULL; enums below are for values that fit an int.
#
#   4-level:  63 XD | 62:59 key | 51:12 frame | 8 G | 7 PS/PAT | 6 D | 5 A | 4 PCD | 3 PWT | 2 U/S | 1 R/W | 0 P
#   EPT:      63 SVE | 51:12 frame | 10 XU | 9 D | 8 A | 7 PS | 6 IPAT | 5:3 MT | 2 X | 1 W | 0 R

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #define FM_P     0x1ULL
    #define FM_RW    0x2ULL
    #define FM_US    0x4ULL
    #define FM_PWT   0x8ULL
    #define FM_PCD   0x10ULL
    #define FM_A     0x20ULL
    #define FM_D     0x40ULL
    #define FM_PS    0x80ULL
    #define FM_G     0x100ULL
    #define FM_XD    0x8000000000000000ULL
    #define FM_FRAME 0x000FFFFFFFFFF000ULL
    #define FM_EPT_R    0x1ULL
    #define FM_EPT_W    0x2ULL
    #define FM_EPT_X    0x4ULL
    #define FM_EPT_IPAT 0x40ULL
    #define FM_EPT_A    0x100ULL
    #define FM_EPT_D    0x200ULL
    #define FM_EPT_XU   0x400ULL
    #define FM_EPT_SPP  0x2000000000000000ULL
    #define FM_SUPPRESS_VE  0x8000000000000000ULL
    #define FM_SPP_RESERVED 0xAAAAAAAAAAAAAAAAULL
    #define FM_ONES  0xFFFFFFFFFFFFFFFFULL
    #define fm_ctz(x) __builtin_ctz(x)
    #define fm_ctzll(x) __builtin_ctzll(x)
    _Static_assert((FM_P|FM_RW|FM_US|FM_A|FM_D|FM_PS|FM_G|FM_XD) ==
                   (FM_P+FM_RW+FM_US+FM_A+FM_D+FM_PS+FM_G+FM_XD), "guest entry bits overlap");
    _Static_assert(((FM_P|FM_RW|FM_US|FM_A|FM_D|FM_PS|FM_G|FM_XD) & FM_FRAME) == 0, "frame overlaps flags");
    _Static_assert(((FM_EPT_R|FM_EPT_W|FM_EPT_X|FM_EPT_IPAT|FM_EPT_A|FM_EPT_D|FM_EPT_XU) & FM_FRAME) == 0,
                   "EPT flags overlap the frame");
    """
    const uint64_t P "FM_P"
    const uint64_t RW "FM_RW"
    const uint64_t US "FM_US"
    const uint64_t PWT "FM_PWT"
    const uint64_t PCD "FM_PCD"
    const uint64_t A "FM_A"
    const uint64_t D "FM_D"
    const uint64_t PS "FM_PS"
    const uint64_t G "FM_G"
    const uint64_t XD "FM_XD"
    const uint64_t FRAME "FM_FRAME"
    const uint64_t EPT_R "FM_EPT_R"
    const uint64_t EPT_W "FM_EPT_W"
    const uint64_t EPT_X "FM_EPT_X"
    const uint64_t EPT_IPAT "FM_EPT_IPAT"
    const uint64_t EPT_A "FM_EPT_A"
    const uint64_t EPT_D "FM_EPT_D"
    const uint64_t EPT_XU "FM_EPT_XU"
    const uint64_t EPT_SPP "FM_EPT_SPP"                 # 4 KB leaf: sub-page permissions decide on writes
    const uint64_t SUPPRESS_VE "FM_SUPPRESS_VE"
    const uint64_t SPP_RESERVED "FM_SPP_RESERVED"       # odd bits of a sub-page permission entry
    const uint64_t ONES "FM_ONES"
    uint32_t ctz "fm_ctz"(uint32_t) noexcept nogil          # number of the lowest bit that is set; one is
    uint32_t ctzll "fm_ctzll"(uint64_t) noexcept nogil


# ---- tables of 512 entries of 8 bytes: 4-level, 5-level and PAE paging, EPT -----------------------------------
#
#   56:48 index level 5 | 47:39 level 4 | 38:30 level 3 | 29:21 level 2 | 20:12 level 1 | 11:0 offset

cdef inline int level_shift(int level) noexcept nogil:
    # log2 of what an entry maps
    return 9 * level + 3


cdef inline uint64_t pt_index(uint64_t la, int level) noexcept nogil:
    return la >> level_shift(level) & 511
