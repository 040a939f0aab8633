"""A vCPU of a VM: made, loaded, in and out of guest mode (virt/kvm/kvm_main.c, vcpu_enter_guest of Linux 6.1).

One vCPU of a VM is loaded: the one that runs. The others keep their state where it is.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memmove

from fastmmu.arch.vmx cimport EXIT_EXTERNAL_INTERRUPT, SECONDARY_VPID, Vmcs, clear_exit_information
from fastmmu.cpu.apic_access cimport irq_boundary
from fastmmu.cpu.vcpu cimport Vcpu, vcpu_derive, vcpu_enter, vcpu_leave
from fastmmu.kvm.exits cimport kvm_arm, kvm_drain
from fastmmu.kvm.ipi cimport NO_EXIT, ipi_arrived, ipi_routed
from fastmmu.kvm.kvm cimport (
    EXITING_GUEST_MODE, IN_GUEST_MODE, NOWHERE, OUTSIDE_GUEST_MODE, Kvm, KvmVcpu,
)
from fastmmu.kvm.lapic cimport kvm_apic_begin, kvm_apic_entry
from fastmmu.kvm.requests cimport kvm_flush, kvm_moved, kvm_serve_requests
from fastmmu.kvm.roots cimport kvm_resume_root
from fastmmu.kvm.svm cimport svm_pre_run
from fastmmu.mmu.roots cimport mmu_common_root, mmu_vcpu_destroy, mmu_vcpu_load


cdef int kvm_vcpu_create(Kvm *kvm, KvmVcpu *vcpu) noexcept nogil:
    # one more of the VM, with the lowest index that none has; its memory stays the caller's. -1 where memory does not
    # suffice
    cdef void *grown = realloc(kvm.vcpu, (kvm.n_vcpus + 1) * sizeof(KvmVcpu *))
    cdef uint32_t i = 0
    if grown == NULL:
        return -1
    kvm.vcpu = <KvmVcpu **> grown
    while i < kvm.n_vcpus and kvm.vcpu[i].index == i:
        i += 1
    memmove(&kvm.vcpu[i + 1], &kvm.vcpu[i], (kvm.n_vcpus - i) * sizeof(KvmVcpu *))
    kvm.vcpu[i] = vcpu
    vcpu.kvm = kvm
    vcpu.index = i
    vcpu.pcpu = NOWHERE
    kvm.n_vcpus += 1
    if kvm.running == NULL:
        kvm.running = vcpu
    return 0


cdef void kvm_vcpu_vpid(KvmVcpu *vcpu, uint32_t vpid) noexcept nogil:
    # 0: it runs without; of AMD: under the ASID that it gets before VM entry
    cdef Vmcs *vmcs = &vcpu.cpu.vmcs
    vcpu.vpid = vmcs.vpid = vpid
    vcpu.asid_generation = 0
    vmcs.secondary &= ~SECONDARY_VPID
    if vpid or vcpu.cpu.svm:
        vmcs.secondary |= SECONDARY_VPID


cdef void kvm_vcpu_destroy(KvmVcpu *vcpu) noexcept nogil:
    # one that is not loaded ends: nothing is asked of it any more
    cdef Kvm *kvm = vcpu.kvm
    cdef uint32_t i = 0
    while kvm.vcpu[i] != vcpu:
        i += 1
    kvm.n_vcpus -= 1
    memmove(&kvm.vcpu[i], &kvm.vcpu[i + 1], (kvm.n_vcpus - i) * sizeof(KvmVcpu *))
    for i in range(4):
        kvm.accesses_ended += vcpu.cpu.c.ops[i]
    mmu_vcpu_destroy(&kvm.mmu, &vcpu.mmu)


cdef void kvm_vcpu_put(KvmVcpu *vcpu) noexcept nogil:
    # another one is about to run. All write to one page of the log, and each is read to its own index.
    kvm_drain(vcpu)


cdef void kvm_vcpu_current(KvmVcpu *vcpu) noexcept nogil:
    # it runs from now on: a flush goes to it at once, its roots and its dirty ring are in force
    vcpu.kvm.running = vcpu
    mmu_vcpu_load(&vcpu.kvm.mmu, &vcpu.mmu)


cdef void kvm_vcpu_load(KvmVcpu *vcpu) noexcept nogil:
    kvm_vcpu_current(vcpu)
    if not vcpu.kvm.shadow:
        load_ept_root(vcpu)


cdef void load_ept_root(KvmVcpu *vcpu) noexcept nogil:
    # All tables may have gone since this vCPU ran, by what another did: the root is another page then, and the old one
    # may serve again. What is cached under it goes by the flush of all that is owed as well, or here, if of one alone.
    cdef Vcpu *v = &vcpu.cpu
    cdef uint64_t root = mmu_common_root(&vcpu.kvm.mmu)
    if not root or root == v.ept.root:
        return
    if not vcpu.kvm.mmu.policy.flush_all_contexts or vcpu.kvm.modes.amd:
        kvm_flush(vcpu)
    v.ept.root = root
    v.vmcs.eptp = (v.vmcs.eptp & 0xFFF) | root


cdef int kvm_vcpu_enter(KvmVcpu *vcpu, uint32_t pcpu) noexcept nogil:
    # In guest mode on this physical CPU, whose TLB Vcpu.tlb is: with the flushes that it owes, if it was not, or was
    # kicked. -1, or what irq_boundary says
    cdef Vcpu *v = &vcpu.cpu
    cdef uint32_t reason = NO_EXIT
    if vcpu.irq != NULL:
        reason = ipi_arrived(vcpu.irq)
    elif vcpu.mode == EXITING_GUEST_MODE:
        reason = EXIT_EXTERNAL_INTERRUPT
    if vcpu.mode != OUTSIDE_GUEST_MODE and reason != NO_EXIT:
        clear_exit_information(&v.vmcs)
        vcpu_leave(v, reason)
        v.tlb_control = 0
        kvm_drain(vcpu)
        vcpu.mode = OUTSIDE_GUEST_MODE
    kvm_arm(vcpu)
    if vcpu.kvm.shadow and kvm_resume_root(vcpu):
        return -1
    if vcpu.pcpu != pcpu:
        kvm_moved(vcpu)
    vcpu.pcpu = pcpu
    kvm_serve_requests(vcpu)
    if vcpu.mode == IN_GUEST_MODE:
        vcpu_derive(v)                          # another machine may have been made meanwhile
        return irq_boundary(vcpu.irq) if vcpu.irq != NULL else 0
    vcpu.mode = IN_GUEST_MODE
    if vcpu.irq != NULL:
        ipi_routed(vcpu.irq, pcpu)
        kvm_apic_begin(vcpu.irq)
        kvm_apic_entry(vcpu.irq)
    if vcpu.kvm.modes.amd:
        svm_pre_run(vcpu)
    if vcpu_enter(v):
        return -1
    return irq_boundary(vcpu.irq) if vcpu.irq != NULL else 0


cdef void kvm_vcpu_exit(KvmVcpu *vcpu, uint32_t reason) noexcept nogil:
    # the host's timer takes the physical CPU from it; or it halts
    clear_exit_information(&vcpu.cpu.vmcs)
    vcpu_leave(&vcpu.cpu, reason)
    vcpu.cpu.tlb_control = 0
    kvm_drain(vcpu)
    vcpu.mode = OUTSIDE_GUEST_MODE
