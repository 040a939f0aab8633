"""VMCS regions in memory, and the fields of the current one. Header: vmx/region.pxd.

    bytes of a region    0 revision identifier    4 VMX-abort indicator    8 state    64 the core's fields, the rest

The processor works on a copy of the current VMCS; memory gets it back by VMCLEAR and by VMPTRLD of another one, as the
SDM allows (volume 3, "Software use of virtual-machine control structures").
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmmu.arch.bits cimport ONES
from fastmmu.arch.vmx cimport Vmcs
from fastmmu.paging.memory cimport mem_holds, mem_read32, mem_write32
from fastmmu.vmx.processor cimport (
    CURRENT, END_BUS, END_DONE, END_INVALID, ERROR_NO_FIELD, ERROR_READ_ONLY, ERROR_VMCLEAR_ADDRESS,
    ERROR_VMCLEAR_VMXON, ERROR_VMPTRLD_ADDRESS, ERROR_VMPTRLD_REVISION, ERROR_VMPTRLD_VMXON, LAUNCHED, N_OTHER, N_SLOTS,
    REVISION, Processor, Rest, Slot,
)

from fastmmu.vmx.fields import Field

cdef enum:
    STATE = 8
    FIELDS = 64
    N_ENCODINGS = 1 << 14

cdef Slot slot[N_SLOTS]
cdef uint8_t slot_of[N_ENCODINGS]       # [bits 14:1 of an encoding]: number + 1; 0: no such field
cdef Processor probe                    # for offsets alone

assert FIELDS + sizeof(Vmcs) + sizeof(Rest) <= 4096


# ---- regions ----------------------------------------------------------------------------------------------

cdef inline bint named(const Processor *p, uint64_t address) noexcept nogil:
    return not address & 0xFFF and not address >> p.caps.maxphyaddr


cdef inline bint there(Processor *p, uint64_t address) noexcept nogil:
    p.missing = address
    return mem_holds(p.cpu.mem, address, 4096)


cdef void write_back(Processor *p) noexcept nogil:
    cdef uint8_t *at = p.cpu.mem.base + p.current
    memcpy(at + FIELDS, &p.cpu.vmcs, sizeof(Vmcs))
    memcpy(at + FIELDS + sizeof(Vmcs), &p.rest, sizeof(Rest))
    mem_write32(p.cpu.mem, p.current + STATE, mem_read32(p.cpu.mem, p.current + STATE) & <uint32_t> LAUNCHED)
    p.current = ONES


cdef int region_clear(Processor *p, uint64_t address) noexcept nogil:
    # VMCLEAR; it looks at no revision identifier
    if not named(p, address):
        return ERROR_VMCLEAR_ADDRESS
    if address == p.vmxon:
        return ERROR_VMCLEAR_VMXON
    if not there(p, address):
        return END_BUS
    if address == p.current:
        write_back(p)
    mem_write32(p.cpu.mem, address + STATE, 0)
    return END_DONE


cdef int region_load(Processor *p, uint64_t address) noexcept nogil:
    # VMPTRLD
    cdef const uint8_t *at
    if not named(p, address):
        return ERROR_VMPTRLD_ADDRESS
    if address == p.vmxon:
        return ERROR_VMPTRLD_VMXON
    if not there(p, address):
        return END_BUS
    if mem_read32(p.cpu.mem, address) != REVISION:
        return ERROR_VMPTRLD_REVISION
    if address == p.current:
        return END_DONE
    if p.current != ONES:
        write_back(p)
    at = p.cpu.mem.base + address
    memcpy(&p.cpu.vmcs, at + FIELDS, sizeof(Vmcs))
    memcpy(&p.rest, at + FIELDS + sizeof(Vmcs), sizeof(Rest))
    mem_write32(p.cpu.mem, address + STATE,
                mem_read32(p.cpu.mem, address + STATE) & <uint32_t> LAUNCHED | <uint32_t> CURRENT)
    p.current = address
    return END_DONE


cdef void region_launched(Processor *p) noexcept nogil:
    mem_write32(p.cpu.mem, p.current + STATE, CURRENT | LAUNCHED)


cdef bint region_is_launched(const Processor *p) noexcept nogil:
    return mem_read32(p.cpu.mem, p.current + STATE) & <uint32_t> LAUNCHED != 0


# ---- fields -----------------------------------------------------------------------------------------------

cdef int field_slot(uint64_t encoding) noexcept nogil:
    cdef int number = <int> slot_of[encoding >> 1] - 1 if not encoding >> 15 else -1
    return -1 if number < 0 or (encoding & 1 and not slot[number].halves) else number


cdef int field_width(uint64_t encoding) noexcept nogil:
    cdef int number = field_slot(encoding)
    return 0 if number < 0 else 32 if encoding & 1 else slot[number].width


cdef int field_check(const Processor *p, uint64_t encoding, bint write) noexcept nogil:
    cdef int number
    if p.current == ONES:
        return END_INVALID
    number = field_slot(encoding)
    if number < 0 or not p.exists[number]:
        return ERROR_NO_FIELD
    return ERROR_READ_ONLY if write and slot[number].read_only and not p.vmwrite_any else <int> END_DONE


cdef int field_read(Processor *p, uint64_t encoding, uint64_t *value) noexcept nogil:
    cdef int number = field_slot(encoding), end = field_check(p, encoding, False)
    if end:
        return end
    value[0] = 0
    memcpy(value, <uint8_t *> p + slot[number].offset, slot[number].nbytes)
    if encoding & 1:
        value[0] >>= 32
    return END_DONE


cdef int field_write(Processor *p, uint64_t encoding, uint64_t value) noexcept nogil:
    # bits of the operand that the field does not have are ignored
    cdef uint64_t old = 0
    cdef int number = field_slot(encoding), end = field_check(p, encoding, True)
    if end:
        return end
    if encoding & 1:
        memcpy(&old, <uint8_t *> p + slot[number].offset, 8)
        value = (old & 0xFFFFFFFFULL) | value << 32
    memcpy(<uint8_t *> p + slot[number].offset, &value, slot[number].nbytes)
    return END_DONE


cdef bint field_read_only(uint64_t encoding) noexcept nogil:
    # exit information; of a field that exists
    return slot[field_slot(encoding)].read_only


cdef int field_in_core(uint64_t encoding, size_t *offset) noexcept nogil:
    cdef int number = field_slot(encoding)
    cdef size_t first = <char *> &probe.cpu.vmcs - <char *> &probe
    if number < 0 or slot[number].offset < first or slot[number].offset >= first + sizeof(Vmcs):
        return 0
    offset[0] = slot[number].offset - first
    return slot[number].nbytes


# ---- where each field is ----------------------------------------------------------------------------------

cdef int place(number, field, size_t offset, int nbytes) except -1:
    slot[<int> number].offset = <uint16_t> offset
    slot[<int> number].nbytes = <uint8_t> nbytes
    slot[<int> number].width = field.width
    slot[<int> number].halves = field >> 13 == 1
    slot[<int> number].read_only = field.type == "read-only"
    slot_of[<int> (field >> 1)] = number + 1
    if nbytes * 8 != field.width and offset < <size_t> (<char *> &probe.rest.other[0] - <char *> &probe):
        raise AssertionError(f"{field!r} is kept in {nbytes} bytes")
    return 0


cdef int places() except -1:
    cdef char *base = <char *> &probe
    cdef Vmcs *v = &probe.cpu.vmcs
    cdef Rest *r = &probe.rest
    cdef int i, stored = 0
    memset(&probe, 0, sizeof(Processor))
    known = {
        Field.VPID: (<char *> &v.vpid - base, sizeof(v.vpid)),
        Field.POSTED_INTERRUPT_NOTIFICATION_VECTOR: (<char *> &v.posted_vector - base, sizeof(v.posted_vector)),
        Field.GUEST_INTERRUPT_STATUS: (<char *> &v.guest_interrupt_status - base, sizeof(v.guest_interrupt_status)),
        Field.PML_INDEX: (<char *> &v.pml_index - base, sizeof(v.pml_index)),
        Field.MSR_BITMAP: (<char *> &r.msr_bitmap - base, sizeof(r.msr_bitmap)),
        Field.VM_ENTRY_MSR_LOAD_ADDRESS: (<char *> &r.entry_msr_address - base, sizeof(r.entry_msr_address)),
        Field.PML_ADDRESS: (<char *> &v.pml_address - base, sizeof(v.pml_address)),
        Field.VIRTUAL_APIC_ADDRESS: (<char *> &v.virtual_apic_address - base, sizeof(v.virtual_apic_address)),
        Field.APIC_ACCESS_ADDRESS: (<char *> &v.apic_access_address - base, sizeof(v.apic_access_address)),
        Field.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS: (
            <char *> &v.posted_descriptor_address - base, sizeof(v.posted_descriptor_address)),
        Field.VM_FUNCTION_CONTROLS: (<char *> &v.vm_functions - base, sizeof(v.vm_functions)),
        Field.EPTP: (<char *> &v.eptp - base, sizeof(v.eptp)),
        Field.EPTP_LIST_ADDRESS: (<char *> &v.eptp_list_address - base, sizeof(v.eptp_list_address)),
        Field.VE_INFORMATION_ADDRESS: (<char *> &v.ve_information_address - base, sizeof(v.ve_information_address)),
        Field.SPPT_POINTER: (<char *> &v.sppt_pointer - base, sizeof(v.sppt_pointer)),
        Field.TERTIARY_CONTROLS: (<char *> &v.tertiary - base, sizeof(v.tertiary)),
        Field.GUEST_PHYSICAL_ADDRESS: (<char *> &v.guest_physical_address - base, sizeof(v.guest_physical_address)),
        Field.VMCS_LINK_POINTER: (<char *> &r.link_pointer - base, sizeof(r.link_pointer)),
        Field.GUEST_IA32_PAT: (<char *> &r.guest_pat - base, sizeof(r.guest_pat)),
        Field.GUEST_IA32_EFER: (<char *> &v.guest_efer - base, sizeof(v.guest_efer)),
        Field.HOST_IA32_PAT: (<char *> &r.host_pat - base, sizeof(r.host_pat)),
        Field.HOST_IA32_EFER: (<char *> &r.host_efer - base, sizeof(r.host_efer)),
        Field.PIN_BASED_CONTROLS: (<char *> &v.pin_based - base, sizeof(v.pin_based)),
        Field.PRIMARY_CONTROLS: (<char *> &v.primary - base, sizeof(v.primary)),
        Field.EXCEPTION_BITMAP: (<char *> &v.exception_bitmap - base, sizeof(v.exception_bitmap)),
        Field.PAGE_FAULT_ERROR_CODE_MASK: (<char *> &v.pfec_mask - base, sizeof(v.pfec_mask)),
        Field.PAGE_FAULT_ERROR_CODE_MATCH: (<char *> &v.pfec_match - base, sizeof(v.pfec_match)),
        Field.CR3_TARGET_COUNT: (<char *> &v.cr3_target_count - base, sizeof(v.cr3_target_count)),
        Field.VM_EXIT_CONTROLS: (<char *> &v.vm_exit - base, sizeof(v.vm_exit)),
        Field.VM_EXIT_MSR_STORE_COUNT: (<char *> &r.exit_msr_store_count - base, sizeof(r.exit_msr_store_count)),
        Field.VM_EXIT_MSR_LOAD_COUNT: (<char *> &r.exit_msr_load_count - base, sizeof(r.exit_msr_load_count)),
        Field.VM_ENTRY_CONTROLS: (<char *> &v.vm_entry - base, sizeof(v.vm_entry)),
        Field.VM_ENTRY_MSR_LOAD_COUNT: (<char *> &r.entry_msr_count - base, sizeof(r.entry_msr_count)),
        Field.VM_ENTRY_INTERRUPTION_INFO: (<char *> &r.entry_event - base, sizeof(r.entry_event)),
        Field.VM_ENTRY_EXCEPTION_ERROR_CODE: (<char *> &r.entry_event_error - base, sizeof(r.entry_event_error)),
        Field.VM_ENTRY_INSTRUCTION_LENGTH: (<char *> &r.entry_event_length - base, sizeof(r.entry_event_length)),
        Field.TPR_THRESHOLD: (<char *> &v.tpr_threshold - base, sizeof(v.tpr_threshold)),
        Field.SECONDARY_CONTROLS: (<char *> &v.secondary - base, sizeof(v.secondary)),
        Field.VM_INSTRUCTION_ERROR: (<char *> &r.instruction_error - base, sizeof(r.instruction_error)),
        Field.EXIT_REASON: (<char *> &v.exit_reason - base, sizeof(v.exit_reason)),
        Field.VM_EXIT_INTERRUPTION_INFO: (<char *> &v.exit_interruption_info - base, sizeof(v.exit_interruption_info)),
        Field.VM_EXIT_INTERRUPTION_ERROR_CODE: (
            <char *> &v.exit_interruption_error - base, sizeof(v.exit_interruption_error)),
        Field.IDT_VECTORING_INFO: (<char *> &r.vectoring - base, sizeof(r.vectoring)),
        Field.IDT_VECTORING_ERROR_CODE: (<char *> &r.vectoring_error - base, sizeof(r.vectoring_error)),
        Field.VM_EXIT_INSTRUCTION_LENGTH: (<char *> &r.exit_length - base, sizeof(r.exit_length)),
        Field.VM_EXIT_INSTRUCTION_INFO: (<char *> &r.exit_instruction - base, sizeof(r.exit_instruction)),
        Field.GUEST_SS_ACCESS_RIGHTS: (<char *> &r.ss_rights - base, sizeof(r.ss_rights)),
        Field.GUEST_INTERRUPTIBILITY_STATE: (<char *> &r.interruptibility - base, sizeof(r.interruptibility)),
        Field.GUEST_ACTIVITY_STATE: (<char *> &r.activity - base, sizeof(r.activity)),
        Field.CR0_GUEST_HOST_MASK: (<char *> &v.cr0_mask - base, sizeof(v.cr0_mask)),
        Field.CR4_GUEST_HOST_MASK: (<char *> &v.cr4_mask - base, sizeof(v.cr4_mask)),
        Field.CR0_READ_SHADOW: (<char *> &v.cr0_shadow - base, sizeof(v.cr0_shadow)),
        Field.CR4_READ_SHADOW: (<char *> &v.cr4_shadow - base, sizeof(v.cr4_shadow)),
        Field.EXIT_QUALIFICATION: (<char *> &v.exit_qualification - base, sizeof(v.exit_qualification)),
        Field.GUEST_LINEAR_ADDRESS: (<char *> &v.guest_linear_address - base, sizeof(v.guest_linear_address)),
        Field.GUEST_CR0: (<char *> &v.guest_cr0 - base, sizeof(v.guest_cr0)),
        Field.GUEST_CR3: (<char *> &v.guest_cr3 - base, sizeof(v.guest_cr3)),
        Field.GUEST_CR4: (<char *> &v.guest_cr4 - base, sizeof(v.guest_cr4)),
        Field.GUEST_RIP: (<char *> &r.guest_rip - base, sizeof(r.guest_rip)),
        Field.GUEST_RFLAGS: (<char *> &v.guest_rflags - base, sizeof(v.guest_rflags)),
        Field.HOST_CR0: (<char *> &r.host_cr0 - base, sizeof(r.host_cr0)),
        Field.HOST_CR3: (<char *> &r.host_cr3 - base, sizeof(r.host_cr3)),
        Field.HOST_CR4: (<char *> &r.host_cr4 - base, sizeof(r.host_cr4)),
        Field.HOST_RIP: (<char *> &r.host_rip - base, sizeof(r.host_rip)),
    }
    for i in range(4):
        known[Field(Field.EOI_EXIT_BITMAP_0 + 2 * i)] = <char *> &v.eoi_exit_bitmap[i] - base, 8
        known[Field(Field.GUEST_PDPTE0 + 2 * i)] = <char *> &v.guest_pdpte[i] - base, 8
        known[Field(Field.CR3_TARGET_VALUE_0 + 2 * i)] = <char *> &v.cr3_target[i] - base, 8
    for number, field in enumerate(Field):
        if field in known:
            offset, nbytes = known[field]
        else:
            offset, nbytes = <char *> &r.other[stored] - base, 8
            stored += 1
        place(number, field, offset, nbytes)
    if len(Field) > N_SLOTS or stored > N_OTHER:
        raise AssertionError("more fields than places")
    return 0


places()
