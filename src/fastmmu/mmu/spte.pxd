# Entries of the tables that the VMM owns: what they say, and how they are made (kvm_policy.md §3.3, §4.4).
#
#   EPT:     58 may write | 57 host may write | 56 X, 54 R set aside | 51:12 frame
#            11 mark | 9 D | 8 A | 7 PS | 6 IPAT | 5:3 MT | 2:0 X W R
#   paging:  63 XD | 62:59 key | 51:12 frame | 11 mark | 10 may write | 9 host may write
#            7 PS | 6 D | 5 A | 2 U | 1 W | 0 P
#   MMIO:    62:52 and 10:3 generation | 51:12 frame; EPT 110b, malformed; paging: bit 51, reserved, and P
#
# set aside: without A flags an access shows by the fault of an entry whose X, W, R were taken (§6).
# mark: present for the VMM. may write: read-only only because writes are logged; a fault may give the right back alone.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport EPT_A, EPT_D, EPT_R, EPT_W, EPT_X, FRAME, PS, RW, US, XD, A, D, P

cdef extern from *:
    """
    #define FM_SPTE_MARK       (1ULL << 11)
    #define FM_EPT_HOST_WRITE  (1ULL << 57)
    #define FM_EPT_MAY_WRITE   (1ULL << 58)
    #define FM_PT_HOST_WRITE   (1ULL << 9)
    #define FM_PT_MAY_WRITE    (1ULL << 10)
    #define FM_MMIO_RESERVED   (1ULL << 51)
    #define FM_MMIO_EPT        6ULL
    #define FM_MMIO_GENERATION ((0xFFULL << 3) | (0x7FFULL << 52))
    #define FM_EPT_TRACKED     ((FM_EPT_R | FM_EPT_X) << 54)
    #define FM_BITS_EPT(OP) (FM_EPT_R OP FM_EPT_W OP FM_EPT_X OP (7ULL << 3) OP FM_EPT_IPAT OP FM_PS OP FM_EPT_A OP \\
        FM_EPT_D OP FM_SPTE_MARK OP FM_FRAME OP FM_EPT_TRACKED OP FM_EPT_HOST_WRITE OP FM_EPT_MAY_WRITE)
    #define FM_BITS_PT(OP) (FM_P OP FM_RW OP FM_US OP FM_A OP FM_D OP FM_PS OP FM_PT_HOST_WRITE OP FM_PT_MAY_WRITE OP \\
        FM_SPTE_MARK OP FM_FRAME OP (15ULL << 59) OP FM_XD)
    _Static_assert(FM_BITS_EPT(|) == FM_BITS_EPT(+), "bits of an EPT entry overlap");
    _Static_assert(FM_BITS_PT(|) == FM_BITS_PT(+), "bits of a paging entry overlap");
    _Static_assert(((FM_MMIO_GENERATION | FM_MMIO_EPT) & (FM_SPTE_MARK | FM_FRAME)) == 0
                   && (FM_MMIO_GENERATION & (FM_MMIO_EPT | 7)) == 0, "bits of an MMIO SPTE overlap");
    _Static_assert((FM_MMIO_RESERVED & ~FM_FRAME) == 0, "the reserved bit of an MMIO SPTE is an address bit");
    """
    const uint64_t SPTE_MARK "FM_SPTE_MARK"
    const uint64_t EPT_HOST_WRITE "FM_EPT_HOST_WRITE"
    const uint64_t EPT_MAY_WRITE "FM_EPT_MAY_WRITE"
    const uint64_t PT_HOST_WRITE "FM_PT_HOST_WRITE"
    const uint64_t PT_MAY_WRITE "FM_PT_MAY_WRITE"
    const uint64_t MMIO_RESERVED "FM_MMIO_RESERVED"
    const uint64_t MMIO_EPT "FM_MMIO_EPT"

cdef enum MmuFormat:
    FORMAT_PAGING = 0           # entries that the processor reads as ordinary 4-level paging
    FORMAT_EPT = 1

cdef enum RoleAccess:           # role.access, and the rights of a mapping
    MAY_X = 1
    MAY_W = 2
    MAY_U = 4
    MAY_ALL = 7
    MAY_KEY = 3                 # shift: beside them the protection key, where the guest has keys

cdef enum:
    MMIO_GENERATIONS = 1 << 19


cdef inline bint spte_present(uint64_t entry) noexcept nogil:
    return entry & SPTE_MARK != 0


cdef inline bint spte_leaf(uint64_t entry, int level) noexcept nogil:
    # of a present entry
    return level == 1 or entry & PS != 0


cdef inline uint64_t spte_may_write(int format) noexcept nogil:
    return EPT_MAY_WRITE if format == FORMAT_EPT else PT_MAY_WRITE


cdef inline uint64_t spte_host_write(int format) noexcept nogil:
    return EPT_HOST_WRITE if format == FORMAT_EPT else PT_HOST_WRITE


cdef inline bint spte_tracked(uint64_t entry) noexcept nogil:
    # of a present EPT entry: the next access to its page faults, and gives it back its rights
    return entry & (EPT_R | EPT_W | EPT_X) == 0


cdef inline uint64_t spte_track(uint64_t entry) noexcept nogil:
    # W is not kept: the fault of a write gives it back where bit 58 says that it may (kvm_policy.md §5)
    if spte_tracked(entry):
        return entry
    return (entry & ~(EPT_R | EPT_W | EPT_X)) | (entry & (EPT_R | EPT_X)) << 54


cdef inline uint64_t spte_restore(uint64_t entry) noexcept nogil:
    return (entry & ~((EPT_R | EPT_X) << 54)) | (entry >> 54 & (EPT_R | EPT_X))


cdef inline uint64_t spte_dirty(int format) noexcept nogil:
    return EPT_D if format == FORMAT_EPT else D


cdef inline bint spte_update_flushes(int format, bint ad, uint64_t old, uint64_t new) noexcept nogil:
    # Linux flushes where an entry of the same page loses this (mmu_spte_update): W, or what might give it back alone,
    # and its flags; without flags what they stand for
    if old & spte_may_write(format) and not new & RW:
        return True
    if format == FORMAT_EPT and not ad:
        return (spte_tracked(new) and not spte_tracked(old)) or old & ~new & EPT_W
    return old & ~new & (EPT_A | EPT_D if format == FORMAT_EPT else A | D) != 0


cdef inline uint64_t spte_make(int format, uint64_t hpa, int level, int access, bint accessed, bint dirty,
                               bint host_writable, uint64_t memory_type) noexcept nogil:
    # an entry that maps a page; `accessed`, `dirty`: flags that it starts with; memory_type: bits 6:3 of an EPT entry
    cdef uint64_t entry = hpa | SPTE_MARK
    if level > 1:
        entry |= PS
    if format == FORMAT_EPT:
        entry |= EPT_R | memory_type
        if access & MAY_X:
            entry |= EPT_X
        if access & MAY_W:
            entry |= EPT_W | EPT_MAY_WRITE
        if host_writable:
            entry |= EPT_HOST_WRITE
        return entry | (EPT_A if accessed else 0) | (EPT_D if dirty else 0)
    entry |= P
    if access & MAY_W:
        entry |= RW | PT_MAY_WRITE
    if host_writable:
        entry |= PT_HOST_WRITE
    if access & MAY_U:
        entry |= US
    if not access & MAY_X:
        entry |= XD
    entry |= <uint64_t> (access >> MAY_KEY) << 59
    return entry | (A if accessed else 0) | (D if dirty else 0)


cdef inline uint64_t spte_table(int format, uint64_t hpa, bint ad) noexcept nogil:
    # an entry that points to a table allows all; rights stand in the leaf
    if format == FORMAT_EPT:
        return hpa | SPTE_MARK | EPT_R | EPT_W | EPT_X | (EPT_A if ad else 0)
    return hpa | SPTE_MARK | P | RW | US | A | D


cdef inline uint64_t spte_mmio(int format, uint64_t gfn, uint32_t generation) noexcept nogil:
    cdef uint64_t gen = generation & (MMIO_GENERATIONS - 1)
    return ((gfn << 12 & FRAME) | (gen & 0xFF) << 3 | gen >> 8 << 52
            | (MMIO_EPT if format == FORMAT_EPT else MMIO_RESERVED | P))


cdef inline bint spte_is_mmio(int format, uint64_t entry) noexcept nogil:
    if format == FORMAT_EPT:
        return entry & (SPTE_MARK | 7) == MMIO_EPT
    return entry & (SPTE_MARK | MMIO_RESERVED | P) == (MMIO_RESERVED | P)


cdef inline bint spte_mmio_current(uint64_t entry, uint32_t generation) noexcept nogil:
    cdef uint64_t gen = generation & (MMIO_GENERATIONS - 1)
    return (entry >> 3 & 0xFF) == (gen & 0xFF) and (entry >> 52 & 0x7FF) == gen >> 8
