# Control registers: which writes are legal, and what paging derives from them (paging.md §1).

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Paging

cdef enum:
    CR0_PE = 1 << 0
    CR0_MP = 1 << 1
    CR0_TS = 1 << 3
    CR0_ET = 1 << 4
    CR0_NE = 1 << 5
    CR0_WP = 1 << 16
    CR0_NW = 1 << 29
    CR0_CD = 1 << 30
    CR4_VME = 1 << 0
    CR4_PSE = 1 << 4
    CR4_PAE = 1 << 5
    CR4_PGE = 1 << 7
    CR4_LA57 = 1 << 12
    CR4_VMXE = 1 << 13
    CR4_PCIDE = 1 << 17
    CR4_SMEP = 1 << 20
    CR4_SMAP = 1 << 21
    CR4_PKE = 1 << 22
    CR4_CET = 1 << 23
    CR4_PKS = 1 << 24
    EFER_LME = 1 << 8
    EFER_LMA = 1 << 10
    EFER_NXE = 1 << 11
    RFLAGS_FIXED = 1 << 1       # reads 1
    RFLAGS_IF = 1 << 9
    RFLAGS_IOPL = 3 << 12
    RFLAGS_VM = 1 << 17
    RFLAGS_AC = 1 << 18

cdef extern from *:
    """
    #define FM_CR0_PG (1ULL << 31)
    #define FM_CR3_NO_FLUSH (1ULL << 63)
    #define FM_CR0_DEFINED 0xE005003FULL
    #define FM_CR4_DEFINED 0x01F73FFFULL
    #define FM_EFER_DEFINED 0xD01ULL
    """
    const uint64_t CR0_PG "FM_CR0_PG"
    const uint64_t CR3_NO_FLUSH "FM_CR3_NO_FLUSH"
    # Bits that the modelled processor has (paging.md §1.2).
    const uint64_t CR0_DEFINED "FM_CR0_DEFINED"
    # VME to OSXMMEXCPT, UMIP, LA57, VMXE, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE, CET, PKS
    const uint64_t CR4_DEFINED "FM_CR4_DEFINED"
    const uint64_t EFER_DEFINED "FM_EFER_DEFINED"       # SCE, LME, LMA, NXE

cdef enum RegisterRule:         # why a write is #GP(0) (paging.md §1.2); sentences: RULES of arch/registers.pyx
    RULE_NONE = 0
    RULE_CR0_HIGH = 1
    RULE_CR0_NW = 2
    RULE_CR0_PE = 3
    RULE_CR0_PAE = 4
    RULE_CR0_PCIDE = 5
    RULE_PDPTE = 6
    RULE_CR4_RESERVED = 7
    RULE_CR4_PAE = 8
    RULE_CR4_LA57 = 9
    RULE_CR4_PCIDE_MODE = 10
    RULE_CR4_PCIDE_CR3 = 11
    RULE_EFER_RESERVED = 12
    RULE_EFER_LME = 13
    RULE_CR3_RESERVED = 14
    RULE_CR4_NOT_OFFERED = 15
    RULE_INJECTED = 16
    RULE_CR0_CET = 17
    RULE_CR4_CET = 18
    RULE_CR4_KVM = 19

cdef struct Registers:          # of a processor, or a guest's as its VMM has them
    uint64_t cr0, cr3, cr4, efer
    uint64_t pdpte[4]           # the PDPTE registers
    uint64_t pat
    uint32_t pkru, pkrs
    uint8_t maxphyaddr, page1gb, pse36
    uint8_t cpl, ac, implicit, lazy_upper_a


cdef inline bint pages(const Registers *r) noexcept nogil:
    return r.cr0 & CR0_PG != 0


cdef inline bint long_mode(const Registers *r) noexcept nogil:
    return r.efer & EFER_LMA != 0


cdef inline bint pae_paging(const Registers *r) noexcept nogil:
    return r.cr0 & CR0_PG and r.cr4 & CR4_PAE and not r.efer & EFER_LMA


cdef void paging_of(const Registers *r, Paging *g) noexcept nogil
cdef int registers_cr0(const Registers *old, uint64_t value, Registers *new) noexcept nogil
cdef int registers_cr3(const Registers *old, uint64_t value, Registers *new) noexcept nogil
cdef int registers_cr4(const Registers *old, uint64_t value, Registers *new) noexcept nogil
cdef int registers_efer(const Registers *old, uint64_t value, Registers *new) noexcept nogil
cdef uint64_t registers_lmsw(const Registers *r, uint64_t source) noexcept nogil
cdef bint registers_load_pdptes(const Registers *old, const Registers *new) noexcept nogil
cdef int registers_pdptes(Registers *r, const uint64_t *loaded) noexcept nogil
