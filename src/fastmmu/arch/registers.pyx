"""Control registers: what a write to one is allowed to do (paging.md §1.2), and what paging derives from all of them.

A write is judged against the registers before it and gives those after it, or the rule by which it is #GP(0). Who
writes, a processor or a VMM that emulates one, is no matter here; what KVM refuses beyond that: kvm/modes.pyx. Code
segments are not modelled: a guest that turns paging off or on in long mode does so in compatibility mode.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from fastmmu.arch.bits cimport FRAME, PS, XD, P
from fastmmu.arch.types cimport MODE_4, MODE_5, MODE_32, MODE_NONE, MODE_PAE, Paging

# changes that load the PDPTE registers (paging.md §3.2)
cdef uint64_t CR0_LOADS = 0xE0000000ULL         # PG, CD, NW
cdef uint64_t CR4_LOADS = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP

RULES = {
    RULE_CR0_HIGH: "bits 63:32 of CR0 are reserved",
    RULE_CR0_NW: "NW=1 (bit 29) needs CD=1 (bit 30)",
    RULE_CR0_PE: "PG=1 (bit 31) needs PE=1 (bit 0)",
    RULE_CR0_PAE: "turning paging on with EFER.LME=1 enters long mode, which needs CR4.PAE (bit 5)",
    RULE_CR0_PCIDE: "paging cannot be turned off while CR4.PCIDE=1 (bit 17)",
    RULE_PDPTE: "a present PDPTE at CR3 has reserved bits",
    RULE_CR4_RESERVED: "a reserved bit of CR4 is set",
    RULE_CR4_PAE: "CR4.PAE (bit 5) cannot be cleared in long mode",
    RULE_CR4_LA57: "CR4.LA57 (bit 12) cannot change in long mode",
    RULE_CR4_PCIDE_MODE: "CR4.PCIDE (bit 17) can be set in long mode only",
    RULE_CR4_PCIDE_CR3: "CR4.PCIDE (bit 17) can be set only while CR3 has no bit of 11:0 set",
    RULE_EFER_RESERVED: "a reserved bit of EFER is set",
    RULE_EFER_LME: "EFER.LME (bit 8) cannot change while paging is on",
    RULE_CR3_RESERVED: "reserved bits of CR3 are set",
    RULE_CR4_NOT_OFFERED: "protection keys are not offered to a guest under shadow paging; use mmu='ept'",
    RULE_INJECTED: "a policy injected it",
    RULE_CR0_CET: "WP (bit 16) cannot be cleared while CR4.CET=1 (bit 23)",
    RULE_CR4_CET: "CR4.CET (bit 23) needs CR0.WP=1 (bit 16)",
    RULE_CR4_KVM: "KVM offers its guests neither CR4.CET (bit 23) nor CR4.PKS (bit 24)",
}
"""Rule (a RegisterRule) → the sentence that says why a write was #GP(0)."""


# ---- writes -----------------------------------------------------------------------------------------------

cdef int registers_cr0(const Registers *old, uint64_t value, Registers *new) noexcept nogil:
    # MOV to CR0. LMA follows PG and LME.
    new[0] = old[0]
    if value >> 32:
        return RULE_CR0_HIGH
    value = (value & CR0_DEFINED) | CR0_ET
    if value & CR0_NW and not value & CR0_CD:
        return RULE_CR0_NW
    if value & CR0_PG and not value & CR0_PE:
        return RULE_CR0_PE
    if value & CR0_PG and not pages(old) and old.efer & EFER_LME and not old.cr4 & CR4_PAE:
        return RULE_CR0_PAE
    if not value & CR0_PG and old.cr4 & CR4_PCIDE:
        return RULE_CR0_PCIDE
    if not value & CR0_WP and old.cr4 & CR4_CET:
        return RULE_CR0_CET
    new.cr0 = value
    new.efer = old.efer & ~<uint64_t> EFER_LMA
    if value & CR0_PG and old.efer & EFER_LME:
        new.efer |= EFER_LMA
    return RULE_NONE


cdef uint64_t registers_lmsw(const Registers *r, uint64_t source) noexcept nogil:
    # the CR0 that LMSW makes: bits 3:0 of the source, but it never clears PE
    return (r.cr0 & ~<uint64_t> 0xE) | (source & 0xF)


cdef int registers_cr3(const Registers *old, uint64_t value, Registers *new) noexcept nogil:
    # MOV to CR3; bit 63 of the operand is not stored. Outside long mode the operand has 32 bits.
    cdef uint64_t stored = value
    new[0] = old[0]
    if old.cr4 & CR4_PCIDE:
        stored &= ~CR3_NO_FLUSH
    if stored >> (old.maxphyaddr if long_mode(old) else 32):
        return RULE_CR3_RESERVED
    new.cr3 = stored
    return RULE_NONE


cdef int registers_cr4(const Registers *old, uint64_t value, Registers *new) noexcept nogil:
    # MOV to CR4
    new[0] = old[0]
    if value & ~CR4_DEFINED:
        return RULE_CR4_RESERVED
    if long_mode(old) and not value & CR4_PAE:
        return RULE_CR4_PAE
    if long_mode(old) and (value ^ old.cr4) & CR4_LA57:
        return RULE_CR4_LA57
    if value & ~old.cr4 & CR4_PCIDE:
        if not long_mode(old):
            return RULE_CR4_PCIDE_MODE
        if old.cr3 & 0xFFF:
            return RULE_CR4_PCIDE_CR3
    if value & CR4_CET and not old.cr0 & CR0_WP:
        return RULE_CR4_CET
    new.cr4 = value
    return RULE_NONE


cdef int registers_efer(const Registers *old, uint64_t value, Registers *new) noexcept nogil:
    # WRMSR of IA32_EFER; LMA cannot be written
    new[0] = old[0]
    if value & ~EFER_DEFINED:
        return RULE_EFER_RESERVED
    if pages(old) and (value ^ old.efer) & EFER_LME:
        return RULE_EFER_LME
    new.efer = (value & ~<uint64_t> EFER_LMA) | (old.efer & EFER_LMA)
    return RULE_NONE


cdef bint registers_load_pdptes(const Registers *old, const Registers *new) noexcept nogil:
    # a write to CR0 or CR4 that loads the PDPTE registers: PAE paging is in use after it, and a bit of those changed
    return pae_paging(new) and ((old.cr0 ^ new.cr0) & CR0_LOADS != 0 or (old.cr4 ^ new.cr4) & CR4_LOADS != 0)


cdef int registers_pdptes(Registers *r, const uint64_t *loaded) noexcept nogil:
    # the PDPTE registers get these values, all or none (paging.md §3.2)
    cdef uint64_t reserved = 0x1E6 | ~((<uint64_t> 1 << r.maxphyaddr) - 1)
    cdef int i
    for i in range(4):
        if loaded[i] & P and loaded[i] & reserved:
            return RULE_PDPTE
    memcpy(r.pdpte, loaded, sizeof(r.pdpte))
    return RULE_NONE


# ---- what paging derives ----------------------------------------------------------------------------------

cdef void reserved_8_bytes(Paging *g, uint64_t high, int levels) noexcept nogil:
    # rsvd(e, level) of paging.md §3.4, one mask for PS=0 and one for PS=1
    cdef uint64_t base = high if g.nxe else high | XD
    cdef int level
    for level in range(1, levels + 1):
        g.rsvd[level][0] = g.rsvd[level][1] = base
    for level in range(2, levels + 1):
        if not g.large_ok[level]:
            g.rsvd[level][1] |= PS
    g.rsvd[2][1] |= 0x1FE000
    if g.large_ok[3]:
        g.rsvd[3][1] |= 0x3FFFE000


cdef void paging_of(const Registers *r, Paging *g) noexcept nogil:
    # paging.md §1.1, §3.4: mode, levels, masks
    cdef bint lma = pages(r) and long_mode(r), pae = r.cr4 & CR4_PAE != 0
    cdef uint64_t below = (<uint64_t> 1 << r.maxphyaddr) - 1
    memset(g, 0, sizeof(Paging))
    g.cr3 = r.cr3
    g.pat = r.pat
    g.cd = r.cr0 & CR0_CD != 0
    g.frame = FRAME & below
    g.nxe = r.efer & EFER_NXE != 0 and (lma or pae)
    g.lma = lma
    g.wp = r.cr0 & CR0_WP != 0
    g.smep = r.cr4 & CR4_SMEP != 0
    g.smap = r.cr4 & CR4_SMAP != 0
    g.pge = r.cr4 & CR4_PGE != 0
    g.ac = r.ac
    g.user = r.cpl == 3
    g.implicit = r.implicit
    g.id_bit = g.smep or (pae and r.efer & EFER_NXE != 0)
    g.pkr_user = r.pkru if lma and r.cr4 & CR4_PKE else 0
    g.pkr_super = r.pkrs if lma and r.cr4 & CR4_PKS else 0
    g.pcid_on = r.cr4 & CR4_PCIDE != 0
    g.pcid = r.cr3 & 0xFFF if g.pcid_on else 0
    g.lazy_upper_a = r.lazy_upper_a
    g.pse36_bits = r.pse36
    g.entry_shift = 3
    g.index_bits = 9
    g.root = r.cr3 & 0xFFFFF000U
    g.la_bits = 32
    if not pages(r):
        g.mode = MODE_NONE
        g.smep = g.smap = 0     # every address is a user address (paging.md §4.1), and none is protected
    elif lma:
        g.mode = MODE_5 if r.cr4 & CR4_LA57 else MODE_4
        g.levels = 5 if r.cr4 & CR4_LA57 else 4
        g.la_bits = 57 if r.cr4 & CR4_LA57 else 48
        g.root = r.cr3 & g.frame
        g.large_ok[2] = 1
        g.large_ok[3] = r.page1gb
        reserved_8_bytes(g, FRAME & ~g.frame, g.levels)
    elif pae:
        g.mode = MODE_PAE
        g.root = r.cr3 & 0xFFFFFFE0U
        g.levels = 2
        g.large_ok[2] = 1
        reserved_8_bytes(g, ~below & ~XD, 2)
        memcpy(g.pdpte, r.pdpte, sizeof(g.pdpte))
    else:
        g.mode = MODE_32
        g.levels = 2
        g.entry_shift = 2
        g.index_bits = 10
        if r.cr4 & CR4_PSE:
            g.large_ok[2] = 1
            g.rsvd[2][1] = 0x3FE000 & ~(((<uint64_t> 1 << (g.pse36_bits - 32)) - 1) << 13)
