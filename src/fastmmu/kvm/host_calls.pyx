"""What the host and user space ask of the VMM of a machine, kernels or Python; header: kvm/host_calls.pxd."""

from libc.stdint cimport uint32_t
from libc.string cimport memset

from fastmmu._arguments cimport shown
from fastmmu.arch.vmx cimport EXIT_EXTERNAL_INTERRUPT, EXIT_HLT
from fastmmu.cpu.apic cimport APIC_BASE
from fastmmu.cpu.apic_access cimport irq_boundary
from fastmmu.cpu.interrupts cimport Interrupts
from fastmmu.cpu.vcpu cimport ABORT_NONE, vcpu_derive, vcpu_enter_again
from fastmmu.kvm.agile cimport kvm_agile_exit
from fastmmu.kvm.exits cimport kvm_arm, kvm_drain
from fastmmu.kvm.kvm cimport IN_GUEST_MODE, NOWHERE, OUTSIDE_GUEST_MODE, KvmVcpu
from fastmmu.kvm.lapic cimport kvm_apic_init
from fastmmu.kvm.port cimport VirtualMachine
from fastmmu.kvm.registers cimport kvm_registers
from fastmmu.kvm.requests cimport kvm_flush_remote_tlbs, kvm_serve_requests
from fastmmu.kvm.roots cimport kvm_load_root, kvm_zap_all
from fastmmu.kvm.svm cimport svm_pre_run
from fastmmu.kvm.vcpu cimport kvm_vcpu_current, kvm_vcpu_enter, kvm_vcpu_exit, kvm_vcpu_load, kvm_vcpu_put
from fastmmu.kvm.vpid cimport vpid_alloc, vpid_free
from fastmmu.kvm.vpid_port cimport VpidBitmap
from fastmmu.kvm.vpid_py cimport VpidAllocator

from fastmmu.errors import PolicyError


# ---- a vCPU comes, and ends -------------------------------------------------------------------------------------

cdef uint32_t call_allocate_vpid(VirtualMachine vm, KvmVcpu *vcpu, VpidAllocator host, bint enabled) except? 0xBAD:
    # of AMD there are ASIDs instead
    cdef VpidBitmap vpids
    enabled = enabled and not vcpu.cpu.svm
    if vm is None:
        return vpid_alloc(&host.map) if enabled else 0
    vpids = vm.vpids
    vpids.given = set()
    try:
        return vpids.granted(vm.call("allocate_vpid", vcpu, NOWHERE), enabled)
    except BaseException:
        vpids.undo()
        raise
    finally:
        vpids.given = None


cdef int call_free_vpid(VirtualMachine vm, KvmVcpu *vcpu, VpidAllocator host) except -1:
    # where a VMM in Python raises it comes back all the same
    cdef uint32_t vpid = vcpu.vpid
    cdef VpidBitmap vpids
    if vm is None:
        vpid_free(&host.map, vpid)
        vcpu.vpid = 0
        return 0
    vpids = vm.vpids
    vpids.ends = vpid
    try:
        vm.call("free_vpid", vcpu, NOWHERE)
    except BaseException:
        vpid_free(&host.map, vpids.ends)
        raise
    finally:
        vpids.ends = vcpu.vpid = 0
    return 0


cdef int did(VirtualMachine vm, KvmVcpu *vcpu, str name) except? -2:
    # -1: the VMM in Python could not, and Vcpu.abort says why
    done = vm.call(name, vcpu, NOWHERE)
    if not done and not vcpu.cpu.abort:
        raise PolicyError(f"{type(vm.policy).__name__}.{name}() returned {shown(done)} and stopped nothing: return "
                          "True, or say by vcpu.stop() why it cannot be done")
    return 0 if done else -1


cdef int call_reset(VirtualMachine vm, KvmVcpu *vcpu) except? -2:
    # what the VMM makes of the guest's first registers; over EPT kernels find the root made
    if vm is not None:
        return did(vm, vcpu, "vcpu_reset")
    if kvm_registers(vcpu):
        return -1
    if vcpu.kvm.agile != NULL and kvm_agile_exit(vcpu):
        return -1
    if vcpu.kvm.shadow:
        kvm_serve_requests(vcpu)
    return 0


cdef int call_pre_run(VirtualMachine vm, KvmVcpu *vcpu) except -1:
    if not vcpu.cpu.svm:
        return 0
    if vm is not None:
        vm.call("pre_run", vcpu, NOWHERE)
    else:
        svm_pre_run(vcpu)
    return 0


cdef int call_load_root(VirtualMachine vm, KvmVcpu *vcpu) except? -2:
    if vm is not None:
        return did(vm, vcpu, "load_mmu")
    return kvm_load_root(vcpu, vcpu.guest.cr3)


cdef int call_create_lapic(VirtualMachine vm, KvmVcpu *vcpu) except -1:
    # its registers are 0 for a VMM in Python, which gives them what they are after reset
    cdef Interrupts *irq = vcpu.irq
    vcpu.cpu.apic = &irq.virt
    if vm is None:
        kvm_apic_init(irq)
        return 0
    memset(irq.apic.page, 0, 4096)
    irq.apic.base = APIC_BASE
    vm._renew()
    vm.call("create_lapic", vcpu, NOWHERE)
    return 0


# ---- vCPUs and physical CPUs ------------------------------------------------------------------------------------

cdef int call_put(VirtualMachine vm, KvmVcpu *vcpu) except -1:
    if vm is not None:
        vm.call("vcpu_put", vcpu, NOWHERE)
    else:
        kvm_vcpu_put(vcpu)
    return 0


cdef int call_load(VirtualMachine vm, KvmVcpu *vcpu) except -1:
    if vm is not None:
        kvm_vcpu_current(vcpu)
        vm.call("vcpu_load", vcpu, NOWHERE)
    else:
        kvm_vcpu_load(vcpu)
    return 0


cdef int call_enter(VirtualMachine vm, KvmVcpu *vcpu, uint32_t cpu) except? -2:
    if vcpu.cpu.outside:                        # its last VM entry failed
        vcpu.mode = OUTSIDE_GUEST_MODE
    if vm is None:
        return kvm_vcpu_enter(vcpu, cpu)
    vcpu.cpu.outside = vcpu.mode == OUTSIDE_GUEST_MODE
    try:
        vm.call("vcpu_enter_guest", vcpu, cpu)
    except BaseException:
        vcpu.cpu.abort = ABORT_NONE
        raise
    if vcpu.cpu.abort:
        return -1
    if vcpu.mode != IN_GUEST_MODE or vcpu.pcpu != cpu or vcpu.cpu.outside:
        raise PolicyError(f"{type(vm.policy).__name__}.vcpu_enter_guest() did not enter the guest on CPU {cpu}: it "
                          "ends in vcpu.enter(), with vcpu.mode = Mode.IN_GUEST_MODE")
    vcpu_derive(&vcpu.cpu)                      # another machine may have been made meanwhile
    return irq_boundary(vcpu.irq) if vcpu.irq != NULL else 0


cdef int call_enter_again(KvmVcpu *vcpu) except? -2:
    # after a VM entry that failed: the guest executes nothing before one succeeds
    if vcpu_enter_again(&vcpu.cpu):
        return -1
    return irq_boundary(vcpu.irq) if vcpu.irq != NULL else 0


cdef int call_exit(VirtualMachine vm, KvmVcpu *vcpu, uint32_t cpu, bint halts) except -1:
    if vcpu.cpu.outside:
        vcpu.mode = OUTSIDE_GUEST_MODE
    elif vm is not None:
        vm.call("vcpu_halt" if halts else "vcpu_exit", vcpu, cpu)
    else:
        kvm_vcpu_exit(vcpu, EXIT_HLT if halts else EXIT_EXTERNAL_INTERRUPT)
    return 0


# ---- user space -------------------------------------------------------------------------------------------------

cdef int call_drain(VirtualMachine vm, KvmVcpu *vcpu) except -1:
    if vm is not None:
        vm.call("flush_pml_buffer", vcpu, NOWHERE)
    else:
        kvm_drain(vcpu)
    return 0


cdef int call_arm(VirtualMachine vm, KvmVcpu *vcpu) except -1:
    # slots are logged, or not any more
    if vm is not None:
        vm.call("update_cpu_dirty_logging", vcpu, NOWHERE)
    else:
        kvm_arm(vcpu)
    return 0


cdef int call_flush(VirtualMachine vm, KvmVcpu *vcpu) except -1:
    if vm is None:
        kvm_flush_remote_tlbs(vcpu)
    elif vcpu.kvm.mmu.flush:
        vm.call("flush_remote_tlbs", vcpu, NOWHERE)
    return 0


cdef int call_zap_all(VirtualMachine vm, KvmVcpu *vcpu) except? -2:
    if vm is not None:
        done = vm.call("zap_all", vcpu, NOWHERE)
        if done is None:
            raise PolicyError(f"{type(vm.policy).__name__}.zap_all() returned None: return True, or False where there "
                              "is no table page for a new root")
        return 0 if done else -1
    return -1 if kvm_zap_all(vcpu) else 0
