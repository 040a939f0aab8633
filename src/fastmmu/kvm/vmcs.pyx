"""The VMCS of a machine's vCPU, field by field: VMREAD and VMWRITE of a VMM in Python. Header: kvm/vmcs.pxd.

The machine keeps the fields of `arch.vmx.Vmcs`. A write takes with it what the processor derived from the field where
the kernels do so, too: of the EPTP the root, of the controls whether the page-modification log is written, of a guest's
registers over EPT that the next VM entry loads them, and of CR3 under shadow paging the root that is walked. What this
processor does not carry out, or what would lead out of its memory, is refused.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu._arguments cimport shown
from fastmmu.arch.bits cimport FRAME
from fastmmu.arch.types cimport MODE_PAE
from fastmmu.arch.vmx cimport SECONDARY_EPT, SECONDARY_PML, VECTOR_PF, secondary_control
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.kvm.kvm cimport KvmVcpu
from fastmmu.mmu.mmu cimport Mmu, mmu_is_root, mmu_of_tables
from fastmmu.paging.memory cimport mem_holds, mem_read64
from fastmmu.vmx.region cimport field_in_core, field_read_only, field_slot, field_width

from fastmmu.errors import BusError, StateError, VmFailValid
from fastmmu.vmx.controls import PinBased, Primary, Secondary
from fastmmu.vmx.fields import Field

cdef enum:
    NO_FIELD = 12               # VM-instruction errors
    READ_ONLY = 13
    # what is written below
    F_CR3_TARGET_COUNT = 0x400A
    F_EPTP = 0x201A
    F_EXCEPTION_BITMAP = 0x4004
    F_GUEST_CR3 = 0x6802
    F_PFEC_MASK = 0x4006
    F_PFEC_MATCH = 0x4008
    F_PIN_BASED = 0x4000
    F_PML_ADDRESS = 0x200E
    F_PRIMARY = 0x4002
    F_SECONDARY = 0x401E

_places = {Field.VIRTUAL_APIC_ADDRESS, Field.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS}   # the machine's
_pages = {Field.APIC_ACCESS_ADDRESS, Field.PML_ADDRESS}
_shadow_only = {Field.PAGE_FAULT_ERROR_CODE_MASK, Field.PAGE_FAULT_ERROR_CODE_MATCH}
# Controls that a machine's vCPU carries out, and those under shadow paging or over EPT alone: no handler expects them
# in the other.
_controls = {
    F_PIN_BASED: PinBased.EXTERNAL_INTERRUPT_EXITING | PinBased.POSTED_INTERRUPTS,
    F_PRIMARY: (Primary.INTERRUPT_WINDOW_EXITING | Primary.CR3_LOAD_EXITING | Primary.CR3_STORE_EXITING
                | Primary.CR8_LOAD_EXITING | Primary.CR8_STORE_EXITING | Primary.TPR_SHADOW
                | Primary.SECONDARY_CONTROLS),
    F_SECONDARY: (Secondary.VIRTUALIZE_APIC_ACCESSES | Secondary.VIRTUALIZE_X2APIC_MODE | Secondary.VPID
                  | Secondary.APIC_REGISTER_VIRTUALIZATION | Secondary.VIRTUAL_INTERRUPT_DELIVERY),
}
_of_shadow = {F_PRIMARY: Primary.INVLPG_EXITING, F_SECONDARY: Secondary.INVPCID}
_of_ept = {F_SECONDARY: Secondary.UNRESTRICTED_GUEST | Secondary.PML}


cdef name_of(uint64_t encoding):
    return Field(encoding & ~1ULL).name + (" + 1" if encoding & 1 else "")


cdef uint8_t *place(KvmVcpu *vcpu, uint64_t encoding, str instruction, int *nbytes) except NULL:
    cdef size_t offset = 0
    if field_slot(encoding) < 0:
        raise VmFailValid(instruction, NO_FIELD, f"field {shown(int(encoding))}")
    nbytes[0] = field_in_core(encoding, &offset)
    if not nbytes[0]:
        raise StateError(f"{name_of(encoding)}: the vCPU of a machine has no use for this field, and does not keep it; "
                         "fastmmu.vmx.Cpu does")
    return <uint8_t *> &vcpu.cpu.vmcs + offset


cdef uint64_t vmcs_read(const KvmVcpu *vcpu, uint64_t encoding) except? 0xBAD:
    cdef uint64_t value = 0
    cdef int nbytes
    cdef const uint8_t *at = place(<KvmVcpu *> vcpu, encoding, "VMREAD", &nbytes)
    memcpy(&value, at, nbytes)
    return value >> 32 if encoding & 1 else value


cdef int vmcs_write(KvmVcpu *vcpu, uint64_t encoding, uint64_t value) except -1:
    cdef uint64_t old = 0
    cdef int nbytes, width
    cdef uint8_t *at = place(vcpu, encoding, "VMWRITE", &nbytes)
    if field_read_only(encoding):
        raise VmFailValid("VMWRITE", READ_ONLY, f"field {shown(int(encoding))}")
    width = field_width(encoding)
    if width < 64 and value >> width:
        raise StateError(f"{value:#x} is wider than the {width} bits of {name_of(encoding)}")
    memcpy(&old, at, nbytes)
    if encoding & 1:
        value = (old & 0xFFFFFFFFULL) | value << 32
        encoding &= ~1ULL
    if value != old:
        allowed(vcpu, encoding, old, value)
    memcpy(at, &value, nbytes)
    derive(vcpu, encoding, value)
    return 0


cdef int allowed(KvmVcpu *vcpu, uint64_t encoding, uint64_t old, uint64_t value) except -1:
    # the value is not the one that the field has
    cdef bint shadow = vcpu.kvm.shadow
    cdef const Mmu *mmu = &vcpu.kvm.mmu
    if encoding in _controls:
        carried = int(_controls[encoding]) | int((_of_shadow if shadow else _of_ept).get(encoding, 0))
        refused = (old ^ value) & ~carried & 0xFFFFFFFF
        if refused:
            raise StateError(f"{name_of(encoding)}={value:#x}: bits {refused:#x} are not carried out by the vCPU of a "
                             f"machine over {'shadow paging' if shadow else 'EPT'}; leave them as they are")
    elif encoding in _places:
        raise StateError(f"{name_of(encoding)}: where this page lies is the machine's; leave {old:#x}")
    elif encoding in _pages:
        if encoding == F_PML_ADDRESS and mmu_of_tables(mmu, value & ~0xFFFULL):
            raise StateError(f"PML_ADDRESS={value:#x}: the VMM's own tables stand there; give another page")
        if value & 0xFFF or not mem_holds(vcpu.cpu.mem, value, 4096):
            raise BusError(f"{name_of(encoding)}={value:#x}: give the address of a page in the host's memory of "
                           f"{int(vcpu.cpu.mem.nbytes):#x} bytes")
    elif encoding == F_EPTP and not shadow:
        if (value ^ old) & ~FRAME or not mmu_is_root(mmu, value & FRAME):
            raise StateError(f"EPTP={value:#x}: give the address of a table in the host's memory that is a root of "
                             f"the MMU, as vcpu.roots.address, and bits 11:0 of {old:#x}, for it makes its tables by "
                             "them")
    elif encoding == F_GUEST_CR3 and shadow:
        if value != mmu.pdpt if vcpu.cpu.hw.mode == MODE_PAE else not mmu_is_root(mmu, value & FRAME):
            raise StateError(f"GUEST_CR3={value:#x}: under shadow paging give vcpu.roots.address, and the PCID")
    elif encoding == F_CR3_TARGET_COUNT and value > 4:
        raise StateError(f"CR3_TARGET_COUNT={value}: there are 4 CR3-target values")
    elif not shadow and (encoding in _shadow_only or encoding == F_EXCEPTION_BITMAP and (old ^ value) >> VECTOR_PF & 1):
        raise StateError(f"{name_of(encoding)}={value:#x}: over EPT the guest's page faults are its own; leave "
                         f"{old:#x}")
    return 0


cdef void derive(KvmVcpu *vcpu, uint64_t encoding, uint64_t value) noexcept nogil:
    # what the processor has of the field: it is to be as if the kernels had written it
    cdef Vcpu *v = &vcpu.cpu
    cdef int i
    if encoding == F_EPTP:
        v.ept.root = value & FRAME
    elif encoding == F_PML_ADDRESS:
        v.ept.pml_base = value
    elif encoding == F_PRIMARY or encoding == F_SECONDARY:
        v.ept.pml_base = v.vmcs.pml_address
        v.ept.pml_index = NULL
        if secondary_control(&v.vmcs, SECONDARY_PML) and secondary_control(&v.vmcs, SECONDARY_EPT):
            v.ept.pml_index = &v.vmcs.pml_index
    elif encoding >> 10 & 3 == 2 and encoding >> 13 and not vcpu.kvm.shadow:     # registers of the guest
        v.fresh = True
    elif encoding == F_GUEST_CR3:
        v.hw.cr3 = value
        v.hw.pcid = <uint32_t> (value & 0xFFF) if v.hw.pcid_on else 0
        v.hw.root = value & v.hw.frame
        if v.hw.mode == MODE_PAE:
            v.hw.root = value
            for i in range(4):
                v.hw.pdpte[i] = mem_read64(v.mem, value + 8 * i) if mem_holds(v.mem, value + 8 * i, 8) else 0
