# Entries of the tables that the VMM owns: what they say, and how they are made (kvm_policy.md §3.3, §4.4).
#
#   EPT:     58 may write | 57 host may write | 56 X, 54 R access-tracked | 51:12 frame
#            11 MMU-present | 9 D | 8 A | 7 PS | 6 IPAT | 5:3 MT | 2:0 X W R
#   paging:  63 XD | 62:59 key | 51:12 frame | 11 MMU-present | 10 may write | 9 host may write
#            7 PS | 6 D | 5 A | 2 U | 1 W | 0 P
#   MMIO:    62:52 and 10:3 generation | 51:12 frame; EPT 110b, malformed; paging: bit 51, reserved, and P
#
# access-tracked: without A flags an access shows by the fault of an entry whose X, W, R were taken (§6).
# MMU-present: for the VMM, whatever the processor makes of it. may write: read-only only because writes are logged; a
# fault may give the right back alone.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport FRAME, PS
from fastmmu.arch.types cimport gfn_t, hpa_t

cdef extern from *:
    """
    #include <stdint.h>
    #define FM_SPTE_PRESENT       (1ULL << 11)
    #define FM_EPT_HOST_WRITE  (1ULL << 57)
    #define FM_EPT_MAY_WRITE   (1ULL << 58)
    #define FM_PT_HOST_WRITE   (1ULL << 9)
    #define FM_PT_MAY_WRITE    (1ULL << 10)
    #define FM_MMIO_RESERVED   (1ULL << 51)
    #define FM_MMIO_EPT        6ULL
    #define FM_MMIO_GENERATION ((0xFFULL << 3) | (0x7FFULL << 52))
    #define FM_EPT_TRACKED     ((FM_EPT_R | FM_EPT_X) << 54)
    #define FM_BITS_EPT(OP) (FM_EPT_R OP FM_EPT_W OP FM_EPT_X OP (7ULL << 3) OP FM_EPT_IPAT OP FM_PS OP FM_EPT_A OP \\
        FM_EPT_D OP FM_SPTE_PRESENT OP FM_FRAME OP FM_EPT_TRACKED OP FM_EPT_HOST_WRITE OP FM_EPT_MAY_WRITE)
    #define FM_BITS_PT(OP) (FM_P OP FM_RW OP FM_US OP FM_A OP FM_D OP FM_PS OP FM_PT_HOST_WRITE OP FM_PT_MAY_WRITE OP \\
        FM_SPTE_PRESENT OP FM_FRAME OP (15ULL << 59) OP FM_XD)
    _Static_assert(FM_BITS_EPT(|) == FM_BITS_EPT(+), "bits of an EPT entry overlap");
    _Static_assert(FM_BITS_PT(|) == FM_BITS_PT(+), "bits of a paging entry overlap");
    _Static_assert(((FM_MMIO_GENERATION | FM_MMIO_EPT) & (FM_SPTE_PRESENT | FM_FRAME)) == 0
                   && (FM_MMIO_GENERATION & (FM_MMIO_EPT | 7)) == 0, "bits of an MMIO SPTE overlap");
    _Static_assert((FM_MMIO_RESERVED & ~FM_FRAME) == 0, "the reserved bit of an MMIO SPTE is an address bit");
    typedef struct {
        uint64_t read, write, execute, user, xd, accessed, dirty, host_write, may_write, key, memory_type, tracked;
        uint64_t table, mmio, mmio_mask;
        int track_shift, key_shift, pml, nested;
    } fm_spte_format;
    static inline const fm_spte_format *fm_spte_format_of(int format) {
        static const fm_spte_format formats[] = {
            {   /* FORMAT_PAGING */
                .read = FM_P, .write = FM_RW, .execute = 0, .user = FM_US, .xd = FM_XD, .accessed = FM_A, .dirty = FM_D,
                .host_write = FM_PT_HOST_WRITE, .may_write = FM_PT_MAY_WRITE, .key = 15ULL << 59, .key_shift = 59,
                .table = FM_SPTE_PRESENT | FM_P | FM_RW | FM_US | FM_A | FM_D,
                .mmio = FM_MMIO_RESERVED | FM_P, .mmio_mask = FM_MMIO_RESERVED | FM_P | FM_SPTE_PRESENT,
            },
            {   /* FORMAT_EPT */
                .read = FM_EPT_R, .write = FM_EPT_W, .execute = FM_EPT_X, .accessed = FM_EPT_A, .dirty = FM_EPT_D,
                .host_write = FM_EPT_HOST_WRITE, .may_write = FM_EPT_MAY_WRITE, .tracked = FM_EPT_R | FM_EPT_X,
                .track_shift = 54, .memory_type = (7ULL << 3) | FM_EPT_IPAT, .pml = 1, .nested = 1,
                .table = FM_SPTE_PRESENT | FM_EPT_R | FM_EPT_W | FM_EPT_X,
                .mmio = FM_MMIO_EPT, .mmio_mask = FM_EPT_R | FM_EPT_W | FM_EPT_X | FM_SPTE_PRESENT,
            },
            {   /* FORMAT_NPT: that of paging, without keys */
                .read = FM_P, .write = FM_RW, .execute = 0, .user = FM_US, .xd = FM_XD, .accessed = FM_A, .dirty = FM_D,
                .host_write = FM_PT_HOST_WRITE, .may_write = FM_PT_MAY_WRITE, .nested = 1,
                .table = FM_SPTE_PRESENT | FM_P | FM_RW | FM_US | FM_A | FM_D,
                .mmio = FM_MMIO_RESERVED | FM_P, .mmio_mask = FM_MMIO_RESERVED | FM_P | FM_SPTE_PRESENT,
            },
        };
        return &formats[format];
    }
    """
    const uint64_t SPTE_MMU_PRESENT "FM_SPTE_PRESENT"
    const uint64_t MMIO_RESERVED "FM_MMIO_RESERVED"

    ctypedef struct SpteFormat "fm_spte_format":    # which bit says what; 0: none does
        uint64_t read, write, execute, user, xd
        uint64_t accessed, dirty
        uint64_t host_write                     # the host lets the page be written
        uint64_t may_write                      # read-only only because writes are logged
        uint64_t key                            # protection key
        uint64_t memory_type
        uint64_t tracked                        # rights that are kept, shifted, of an access-tracked entry
        uint64_t table                          # an entry that points to a table; + accessed where flags are on
        uint64_t mmio, mmio_mask                # an MMIO SPTE
        int track_shift, key_shift
        bint pml                                # the processor logs where it sets D
        bint nested                             # guest-physical addresses are translated: a page has one entry

    const SpteFormat *spte_format "fm_spte_format_of"(int format) noexcept nogil  # MmuFormat

cdef enum MmuFormat:
    FORMAT_PAGING = 0           # entries that the processor reads as ordinary 4-level paging
    FORMAT_EPT = 1
    FORMAT_NPT = 2              # nested paging of AMD: the processor reads them as paging of user mode (npt.md §2)

cdef enum RoleAccess:           # role.access, and the rights of a mapping
    MAY_X = 1
    MAY_W = 2
    MAY_U = 4
    MAY_ALL = 7
    MAY_KEY = 3                 # shift: beside them the protection key, where the guest has keys

cdef enum:
    MMIO_GENERATIONS = 1 << 19


cdef inline bint spte_present(uint64_t entry) noexcept nogil:
    return entry & SPTE_MMU_PRESENT != 0


cdef inline bint spte_leaf(uint64_t entry, int level) noexcept nogil:
    # of a present entry
    return level == 1 or entry & PS != 0


cdef inline uint64_t spte_rights(const SpteFormat *f) noexcept nogil:
    # bits that allow something
    return f.read | f.write | f.execute | f.user


cdef inline bint spte_tracked(const SpteFormat *f, uint64_t entry) noexcept nogil:
    # of a present entry: access-tracked, the next access to its page faults, and gives it back its rights
    return entry & spte_rights(f) == 0


cdef inline uint64_t spte_track(const SpteFormat *f, uint64_t entry) noexcept nogil:
    # W is not kept: the fault of a write gives it back where MAY_WRITE says that it may (kvm_policy.md §5)
    if spte_tracked(f, entry):
        return entry
    return (entry & ~spte_rights(f)) | (entry & f.tracked) << f.track_shift


cdef inline uint64_t spte_restore(const SpteFormat *f, uint64_t entry) noexcept nogil:
    return (entry & ~(f.tracked << f.track_shift)) | (entry >> f.track_shift & f.tracked)


cdef inline uint64_t spte_executable(const SpteFormat *f, uint64_t entry) noexcept nogil:
    # the entry, executable; where it is access-tracked from its next access on
    return entry & ~f.xd | (f.execute << f.track_shift if spte_tracked(f, entry) else f.execute)


cdef inline bint spte_loses(const SpteFormat *f, uint64_t old, uint64_t new) noexcept nogil:
    # a cached translation of the old entry allows what the new one does not; more rights need no flush (ept.md §11)
    cdef uint64_t place = FRAME | SPTE_MMU_PRESENT | PS | f.key
    return ((old & ~new & spte_rights(f)) | ((old ^ new) & place) | (new & ~old & f.xd)) != 0


cdef inline bint spte_update_flushes(const SpteFormat *f, bint ad, uint64_t old, uint64_t new) noexcept nogil:
    # Linux flushes where an entry of the same page loses this (mmu_spte_update): W, or what might give it back alone,
    # and its flags; without flags what they stand for
    if old & f.may_write and not new & f.write:
        return True
    if not ad:
        return (spte_tracked(f, new) and not spte_tracked(f, old)) or old & ~new & f.write != 0
    return old & ~new & (f.accessed | f.dirty) != 0


cdef inline uint64_t make_spte(const SpteFormat *f, hpa_t hpa, int level, int access, bint accessed, bint dirty,
                               bint host_writable, uint64_t memory_type) noexcept nogil:
    # an entry that maps a page; `accessed`, `dirty`: flags that it starts with; memory_type: where the format has it
    cdef uint64_t entry = hpa | SPTE_MMU_PRESENT | f.read | (memory_type & f.memory_type)
    if level > 1:
        entry |= PS
    entry |= f.execute if access & MAY_X else f.xd
    if access & MAY_W:
        entry |= f.write | f.may_write
    if access & MAY_U:
        entry |= f.user
    if host_writable:
        entry |= f.host_write
    entry |= <uint64_t> (access >> MAY_KEY) << f.key_shift & f.key
    return entry | (f.accessed if accessed else 0) | (f.dirty if dirty else 0)


cdef inline uint64_t spte_table(const SpteFormat *f, hpa_t hpa, bint ad) noexcept nogil:
    # an entry that points to a table allows all; rights stand in the leaf
    return hpa | f.table | (f.accessed if ad else 0)


cdef inline uint64_t spte_mmio(const SpteFormat *f, gfn_t gfn, uint32_t generation) noexcept nogil:
    cdef uint64_t gen = generation & (MMIO_GENERATIONS - 1)
    return (gfn << 12 & FRAME) | (gen & 0xFF) << 3 | gen >> 8 << 52 | f.mmio


cdef inline bint spte_is_mmio(const SpteFormat *f, uint64_t entry) noexcept nogil:
    return entry & f.mmio_mask == f.mmio


cdef inline gfn_t spte_mmio_gfn(uint64_t entry) noexcept nogil:
    return (entry & FRAME & ~MMIO_RESERVED) >> 12


cdef inline bint spte_mmio_current(uint64_t entry, uint32_t generation) noexcept nogil:
    cdef uint64_t gen = generation & (MMIO_GENERATIONS - 1)
    return (entry >> 3 & 0xFF) == (gen & 0xFF) and (entry >> 52 & 0x7FF) == gen >> 8
