# Every event that invalidates cached translations: one function a row of tlb.md §3-§5, §11. Each takes the tags of the
# context that the instruction runs in, or that its operand names, counts by cause, and returns the number of entries
# invalidated. Operand checks (#GP, VMfail) are the machine's. No function forgets more than its row says.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.tlb.entries cimport Tlb

# ---- tlb.md §3: the VPID in force; mappings of all EPT roots; paging-structure caches alike ------------------

cdef uint64_t inv_mov_cr3(Tlb *t, uint32_t vpid, uint32_t pcid) noexcept nogil      # not called where source bit 63 = 1
cdef uint64_t inv_cr0_pg(Tlb *t, uint32_t vpid) noexcept nogil                      # PG 1 -> 0
cdef uint64_t inv_cr4_all(Tlb *t, uint32_t vpid) noexcept nogil                     # PGE changes, PCIDE 1 -> 0
cdef uint64_t inv_cr4_pcid(Tlb *t, uint32_t vpid, uint32_t pcid) noexcept nogil     # PAE changes, SMEP 0 -> 1
cdef uint64_t inv_invlpg(Tlb *t, uint32_t vpid, uint32_t pcid, uint64_t la) noexcept nogil
cdef uint64_t inv_page_fault(Tlb *t, uint32_t vpid, uint32_t pcid, uint64_t la) noexcept nogil
cdef uint64_t inv_invpcid(Tlb *t, int type, uint32_t vpid, uint32_t pcid, uint64_t la) noexcept nogil

# ---- tlb.md §5 ----------------------------------------------------------------------------------------------

cdef uint64_t inv_transition(Tlb *t, bint vpid_enabled) noexcept nogil              # VM entry, VM exit
cdef uint64_t inv_invvpid(Tlb *t, int type, uint32_t vpid, uint64_t la) noexcept nogil
cdef uint64_t inv_invept(Tlb *t, int type, uint64_t eptrta) noexcept nogil
cdef uint64_t inv_vmfunc(Tlb *t, bint vpid_enabled) noexcept nogil                  # EPTP switch
# la only where the gpa is the translation of a linear address (qualification bits 7 and 8): has_la
cdef uint64_t inv_ept_violation(Tlb *t, uint32_t vpid, uint32_t pcid, uint64_t eptrta, uint64_t gpa, bint has_la,
                                uint64_t la) noexcept nogil
cdef uint64_t inv_reset(Tlb *t) noexcept nogil                                      # everything

# ---- AMD: tlb.md §11 ----------------------------------------------------------------------------------------

cdef enum TlbControl:           # of the VMCB, what VMRUN flushes (APM vol. 2, 15.16.2)
    TLB_CONTROL_NONE = 0
    TLB_CONTROL_ALL = 1         # every ASID's, the host's too
    TLB_CONTROL_ASID = 3        # the guest's
    TLB_CONTROL_ASID_LOCAL = 7  # but global mappings

cdef uint64_t inv_invlpga(Tlb *t, uint32_t asid, uint64_t la) noexcept nogil
cdef uint64_t inv_tlb_control(Tlb *t, int control, uint32_t asid) noexcept nogil
