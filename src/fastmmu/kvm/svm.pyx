"""ASIDs and flushes of a vCPU of AMD; header: kvm/svm.pxd.

A flush is owed to the next VM entry: by TLB_CONTROL, or, where the processor cannot flush one ASID or KVM does not ask
it to, by a new ASID. A guest that runs is flushed at once, as by a VM exit and an entry that nobody counts.
"""

from libc.stdint cimport uint64_t

from fastmmu.cpu.vcpu cimport Vcpu, vcpu_derive
from fastmmu.kvm.asid cimport SvmCpu, asid_new
from fastmmu.kvm.kvm cimport NOWHERE, OMIT_ASIDS, OMIT_MOVED, Kvm
from fastmmu.tlb.invalidate cimport TLB_CONTROL_ALL, TLB_CONTROL_ASID, inv_invlpga, inv_tlb_control


cdef void svm_pre_run(KvmVcpu *vcpu) noexcept nogil:
    cdef Kvm *kvm = vcpu.kvm
    cdef SvmCpu *sd = &kvm.svm_cpu[0 if vcpu.pcpu == NOWHERE else vcpu.pcpu]
    if vcpu.asid_generation != sd.asid_generation:
        vcpu.c.asids += 1
        if asid_new(sd, &vcpu.asid, &vcpu.asid_generation):
            vcpu.c.asid_generations += 1
            if not kvm.omit & OMIT_ASIDS:
                vcpu.cpu.tlb_control = TLB_CONTROL_ALL
    vcpu.cpu.vmcs.vpid = vcpu.asid


cdef inline void at_once(KvmVcpu *vcpu) noexcept nogil:
    cdef Vcpu *v = &vcpu.cpu
    svm_pre_run(vcpu)
    inv_tlb_control(v.tlb, v.tlb_control, v.vmcs.vpid)
    v.tlb_control = 0
    vcpu_derive(v)


cdef void svm_flush_tlb(KvmVcpu *vcpu) noexcept nogil:
    vcpu.c.asid_flushes += 1
    if vcpu.kvm.flush_by_asid:
        vcpu.cpu.tlb_control = TLB_CONTROL_ASID
    else:
        vcpu.asid_generation -= 1
    if vcpu.cpu.vpid_on:                        # in the guest
        at_once(vcpu)


cdef void svm_flush_gva(KvmVcpu *vcpu, uint64_t la) noexcept nogil:
    if not vcpu.kvm.flush_by_address:
        svm_flush_tlb(vcpu)
        return
    vcpu.c.invlpga += 1
    inv_invlpga(vcpu.cpu.tlb, vcpu.cpu.vmcs.vpid, la)


cdef void svm_moved(KvmVcpu *vcpu) noexcept nogil:
    # its ASID is one of the other CPU
    if not vcpu.kvm.omit & OMIT_MOVED:
        vcpu.asid_generation = 0
