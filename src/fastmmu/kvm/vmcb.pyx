"""The VMCB of a machine's vCPU of AMD, field by field (APM vol. 2, appendix B). Header: kvm/vmcb.pxd.

The state is that of the processor core, whose layout is a VMCS's: a VMCB is another one of the same. What has no place
in it is ASID and TLB_CONTROL; what an exit was is told in AMD's codes. Intercepts that the model always has are 1, and
refuse to be 0.
"""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.bits cimport FRAME
from fastmmu.arch.vmx cimport (
    PIN_EXTERNAL_INTERRUPT, PRIMARY_CR3_LOAD, PRIMARY_CR3_STORE, PRIMARY_CR8_LOAD, PRIMARY_CR8_STORE,
    PRIMARY_INTERRUPT_WINDOW, PRIMARY_INVLPG, SECONDARY_EPT, SECONDARY_INVPCID, Vmcs,
)
from fastmmu.cpu.apic cimport APIC_TPR
from fastmmu.kvm.vmcs cimport vmcs_write

from fastmmu.arch.vmcb import Intercept1, Intercept3, TlbControl, VIntr, VmcbField
from fastmmu.errors import StateError
from fastmmu.exits import svm_exit
from fastmmu.vmx.fields import Field

_controls = {int(each) for each in TlbControl}
_registers = {VmcbField.EFER: Field.GUEST_IA32_EFER, VmcbField.CR4: Field.GUEST_CR4, VmcbField.CR3: Field.GUEST_CR3,
              VmcbField.CR0: Field.GUEST_CR0, VmcbField.RFLAGS: Field.GUEST_RFLAGS}
# (bit of INTERCEPT_CR, primary control): MOV from and to CR3 and CR8
_crs = ((3, PRIMARY_CR3_STORE), (19, PRIMARY_CR3_LOAD), (8, PRIMARY_CR8_STORE), (24, PRIMARY_CR8_LOAD))
_always = int(Intercept1.CPUID | Intercept1.HLT | Intercept1.IOIO_PROT | Intercept1.MSR_PROT | Intercept1.SHUTDOWN)
_cr4 = 1 << 4 | 1 << 20
_ones = ~(<uint64_t> 0)


cdef uint64_t crs(const Vmcs *vmcs) except? 0xBAD:
    cdef uint64_t found = _cr4 if vmcs.cr4_mask == _ones else 0
    for bit, control in _crs:
        if vmcs.primary & <uint32_t> control:
            found |= 1ULL << <int> bit
    return found


cdef uint64_t intercepts(const Vmcs *vmcs) except? 0xBAD:
    found = _always | Intercept1.CR0_SEL_WRITE
    if vmcs.pin_based & PIN_EXTERNAL_INTERRUPT:
        found |= Intercept1.INTR
    if vmcs.primary & PRIMARY_INTERRUPT_WINDOW:
        found |= Intercept1.VINTR
    if vmcs.primary & PRIMARY_INVLPG:
        found |= Intercept1.INVLPG
    return int(found)


cdef uint64_t v_intr(const KvmVcpu *vcpu) except? 0xBAD:
    # V_TPR is CR8; where the guest's interrupts wait for a window KVM has V_IRQ set, with the highest priority
    cdef uint64_t found = VIntr.V_INTR_MASKING
    if vcpu.cpu.apic != NULL and vcpu.cpu.apic.page != NULL:
        found |= vcpu.cpu.apic.page[<int> APIC_TPR] >> 4
    if vcpu.cpu.vmcs.primary & PRIMARY_INTERRUPT_WINDOW:
        found |= <uint64_t> VIntr.V_IRQ | 0xF << 16
    return found


cdef object exit_of(const KvmVcpu *vcpu):
    cdef const Vmcs *vmcs = &vcpu.cpu.vmcs
    q = vmcs.exit_qualification
    return svm_exit(vmcs.exit_reason, q, vmcs.guest_physical_address, vmcs.exit_interruption_info,
                    vmcs.exit_interruption_error)


cdef uint64_t vmcb_read(const KvmVcpu *vcpu, uint64_t offset) except? 0xBAD:
    cdef const Vmcs *vmcs = &vcpu.cpu.vmcs
    field = VmcbField(offset)
    if field == VmcbField.INTERCEPT_CR:
        return crs(vmcs)
    if field == VmcbField.INTERCEPT_EXCEPTIONS:
        return vmcs.exception_bitmap
    if field == VmcbField.INTERCEPT_1:
        return intercepts(vmcs)
    if field == VmcbField.INTERCEPT_3:
        return <uint64_t> Intercept3.INVPCID if vmcs.secondary & SECONDARY_INVPCID else 0
    if field == VmcbField.GUEST_ASID:
        return vmcs.vpid
    if field == VmcbField.TLB_CONTROL:
        return vcpu.cpu.tlb_control
    if field == VmcbField.V_INTR:
        return v_intr(vcpu)
    if field in (VmcbField.EXITCODE, VmcbField.EXITINFO1, VmcbField.EXITINFO2):
        return exit_of(vcpu)[(field - VmcbField.EXITCODE) >> 3] & _ones
    if field == VmcbField.NP_ENABLE:
        return vmcs.secondary & SECONDARY_EPT != 0
    if field == VmcbField.N_CR3:
        return vmcs.eptp & FRAME
    if field in (VmcbField.CR2, VmcbField.G_PAT):
        return vcpu.cpu.cr2 if field == VmcbField.CR2 else vcpu.cpu.hw.pat
    return {VmcbField.EFER: vmcs.guest_efer, VmcbField.CR4: vmcs.guest_cr4, VmcbField.CR3: vmcs.guest_cr3,
            VmcbField.CR0: vmcs.guest_cr0, VmcbField.RFLAGS: vmcs.guest_rflags}.get(field, 0)


cdef int vmcb_write(KvmVcpu *vcpu, uint64_t offset, uint64_t value) except -1:
    cdef uint64_t old = vmcb_read(vcpu, offset)
    cdef uint32_t primary = vcpu.cpu.vmcs.primary
    field = VmcbField(offset)
    if value >> (field.width - 1) >> 1:
        raise StateError(f"{value:#x} is wider than the {field.width} bits of {field.name}")
    if value == old and field not in _registers:
        return 0
    if field == VmcbField.GUEST_ASID:
        if not 0 < value <= 0xFFFF:
            raise StateError(f"GUEST_ASID={value:#x}: 0 is the host's, VMRUN takes 1 to 65535")
        vcpu.cpu.vmcs.vpid = value
    elif field == VmcbField.TLB_CONTROL:
        if value not in _controls:
            raise StateError(f"TLB_CONTROL={value:#x}: choose from 0, 1, 3, 7")
        vcpu.cpu.tlb_control = value
    elif field == VmcbField.INTERCEPT_EXCEPTIONS:
        vmcs_write(vcpu, Field.EXCEPTION_BITMAP, value)
    elif field == VmcbField.INTERCEPT_CR:
        for bit, control in _crs:
            primary = primary | <uint32_t> control if value >> <int> bit & 1 else primary & ~<uint32_t> control
            old = (old & ~(1ULL << <int> bit)) | (value & 1ULL << <int> bit)
        refuse(field, old, value)
        vmcs_write(vcpu, Field.PRIMARY_CONTROLS, primary)
    elif field == VmcbField.INTERCEPT_1:
        for bit, control in ((Intercept1.VINTR, PRIMARY_INTERRUPT_WINDOW), (Intercept1.INVLPG, PRIMARY_INVLPG)):
            primary = primary | <uint32_t> control if value & <uint64_t> bit else primary & ~<uint32_t> control
            old = (old & ~<uint64_t> bit) | (value & <uint64_t> bit)
        refuse(field, old, value)
        vmcs_write(vcpu, Field.PRIMARY_CONTROLS, primary)
    elif field == VmcbField.N_CR3 and not vcpu.kvm.shadow:
        vmcs_write(vcpu, Field.EPTP, (vcpu.cpu.vmcs.eptp & ~FRAME) | value)
    elif field in _registers:
        vmcs_write(vcpu, _registers[field], value)
    else:
        refuse(field, old, value)
    return 0


cdef int refuse(field, uint64_t have, uint64_t value) except -1:
    if have != value:
        raise StateError(f"{field.name}={value:#x}: the vCPU of a machine carries out {have:#x}; leave it")
    return 0


cdef dict vmcb_of(const KvmVcpu *vcpu):
    return {field.name.lower(): int(vmcb_read(vcpu, field)) for field in VmcbField}
