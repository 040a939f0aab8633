# ASIDs and flushes of a vCPU of AMD (arch/x86/kvm/svm/svm.c; tlb.md §11).

from libc.stdint cimport uint64_t

from fastmmu.kvm.kvm cimport KvmVcpu

cdef void svm_pre_run(KvmVcpu *vcpu) noexcept nogil             # before each VM entry: the ASID that it runs under
cdef void svm_flush_tlb(KvmVcpu *vcpu) noexcept nogil           # all that is cached under its ASID
cdef void svm_flush_gva(KvmVcpu *vcpu, uint64_t la) noexcept nogil      # one address
cdef void svm_moved(KvmVcpu *vcpu) noexcept nogil               # it runs on another physical CPU than before
