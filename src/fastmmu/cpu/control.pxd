# Instructions of CPL 0: on control registers and EFER (paging.md §1.2, vmx.md §6), INVLPG, INVPCID.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.cpu.vcpu cimport Vcpu

cdef int vcpu_mov_cr0(Vcpu *v, uint64_t value) noexcept nogil
cdef int vcpu_mov_cr3(Vcpu *v, uint64_t value) noexcept nogil
cdef int vcpu_mov_cr4(Vcpu *v, uint64_t value) noexcept nogil
cdef int vcpu_lmsw(Vcpu *v, uint64_t source, bint memory) noexcept nogil
cdef int vcpu_clts(Vcpu *v) noexcept nogil
cdef int vcpu_mov_from_cr(Vcpu *v, int number, uint64_t *value) noexcept nogil
cdef int vcpu_wrmsr_efer(Vcpu *v, uint64_t value) noexcept nogil
cdef int vcpu_rdmsr_efer(Vcpu *v, uint64_t *value) noexcept nogil
cdef int vcpu_invlpg(Vcpu *v, uint64_t la) noexcept nogil
cdef int vcpu_invpcid(Vcpu *v, int type, uint32_t pcid, uint64_t la) noexcept nogil
