"""What VM entry checks, by the numbers of vmx.md: C1 to C18 on control fields, G1 to G6 on guest state."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmmu.arch.registers cimport (
    CR0_PE, CR0_PG, CR0_WP, CR4_CET, CR4_DEFINED, CR4_PAE, CR4_PCIDE, EFER_DEFINED, EFER_LMA, EFER_LME, RFLAGS_FIXED,
    RFLAGS_VM,
)
from fastmmu.arch.vmx cimport (
    CAP_ALL, ENTRY_LOAD_EFER, ENTRY_LOAD_PAT, ENTRY_LONG_MODE, EXIT_ACK_INTERRUPT, PIN_EXTERNAL_INTERRUPT, PIN_POSTED,
    PIN_VIRTUAL_NMI, PRIMARY_NMI_WINDOW, PRIMARY_SECONDARY, PRIMARY_TPR_SHADOW, SECONDARY_APIC_ACCESSES,
    SECONDARY_APIC_REGISTERS, SECONDARY_EPT, SECONDARY_MBEC, SECONDARY_PML, SECONDARY_UNRESTRICTED,
    SECONDARY_VIRTUAL_INTERRUPTS, SECONDARY_VPID, SECONDARY_X2APIC, Vmcs, eptp_valid, secondary_control,
)
from fastmmu.paging.memory cimport mem_holds, mem_read64

cdef enum:
    PIN_NMI = 1 << 3
    PRIMARY_TERTIARY = 1 << 17
    VM_FUNCTIONS = 1 << 13
    VE = 1 << 18
    SPP = 1 << 23
    TERTIARY_NEEDS_EPT = 0xE    # HLAT, paging-write, guest-paging verification

ENTRY_FAILURE = 1U << 31

# every control that vmx.md §2 names, and the default-1 bits
MACHINE.pin_based = 0xEB
MACHINE.primary = 0xFFFFFF8CU
MACHINE.secondary = 0x0FFFFFFF
MACHINE.tertiary = 0x1F
MACHINE.vm_exit = MACHINE.vm_entry = 0xFFFFFFFFU
MACHINE.vm_functions = 1
MACHINE.cr0_must = 0x80000021U      # PE, NE, PG
MACHINE.cr4_must = 1 << 13          # VMXE
MACHINE.cr0_may = 0xFFFFFFFFU
MACHINE.cr4_may = CR4_DEFINED
MACHINE.maxphyaddr = 52
MACHINE.ept = CAP_ALL


cdef inline bint address_ok(uint64_t address, int aligned, const EntryCaps *caps) noexcept nogil:
    return not address & ((1ULL << aligned) - 1) and not address >> caps.maxphyaddr


cdef uint32_t invalid_controls(const Vmcs *v, uint8_t vtpr, const EntryCaps *caps) noexcept nogil:
    # checks that fail: bit n - 1 for check Cn. vtpr: byte at 080H of the virtual-APIC page
    cdef uint32_t second = v.secondary if v.primary & PRIMARY_SECONDARY else 0
    cdef uint64_t third = v.tertiary if v.primary & PRIMARY_TERTIARY else 0
    cdef bint shadow = v.primary & PRIMARY_TPR_SHADOW != 0
    cdef bint delivery = second & SECONDARY_VIRTUAL_INTERRUPTS != 0
    cdef bint accesses = second & SECONDARY_APIC_ACCESSES != 0
    cdef bint ept = second & SECONDARY_EPT != 0
    cdef bint bad
    cdef uint32_t failed = 0
    if (v.pin_based & ~caps.pin_based or v.primary & ~caps.primary or second & ~caps.secondary
            or third & ~caps.tertiary or v.vm_exit & ~caps.vm_exit or v.vm_entry & ~caps.vm_entry
            or caps.pin_based_must & ~v.pin_based or caps.primary_must & ~v.primary
            or caps.vm_exit_must & ~v.vm_exit or caps.vm_entry_must & ~v.vm_entry):
        failed |= 1
    if (v.primary & PRIMARY_SECONDARY and caps.secondary_must & ~v.secondary
            or v.primary & PRIMARY_TERTIARY and caps.tertiary_must & ~v.tertiary):
        failed |= 1
    if v.cr3_target_count > 4:
        failed |= 1 << 1
    if shadow:
        if not address_ok(v.virtual_apic_address, 12, caps):
            failed |= 1 << 2
        if not delivery:
            if v.tpr_threshold >> 4:
                failed |= 1 << 3
            if not accesses and v.tpr_threshold & 15 > vtpr >> 4:
                failed |= 1 << 4
    elif second & (SECONDARY_X2APIC | SECONDARY_APIC_REGISTERS | SECONDARY_VIRTUAL_INTERRUPTS):
        failed |= 1 << 5
    if accesses:
        if not address_ok(v.apic_access_address, 12, caps):
            failed |= 1 << 6
        if second & SECONDARY_X2APIC:
            failed |= 1 << 7
    if delivery and not v.pin_based & PIN_EXTERNAL_INTERRUPT:
        failed |= 1 << 8
    if v.pin_based & PIN_POSTED:
        bad = not delivery or not v.vm_exit & EXIT_ACK_INTERRUPT or v.posted_vector >> 8
        if bad or not address_ok(v.posted_descriptor_address, 6, caps):
            failed |= 1 << 9
    if second & SECONDARY_VPID and not v.vpid:
        failed |= 1 << 10
    if ept:
        if not eptp_valid(v.eptp, caps.ept, caps.maxphyaddr):
            failed |= 1 << 11
    elif second & (SECONDARY_UNRESTRICTED | SECONDARY_MBEC | SECONDARY_PML | SPP) or third & TERTIARY_NEEDS_EPT:
        failed |= 1 << 12
    if second & SECONDARY_PML and not address_ok(v.pml_address, 12, caps):
        failed |= 1 << 13
    if second & SPP and not address_ok(v.sppt_pointer, 12, caps):
        failed |= 1 << 14
    if second & VM_FUNCTIONS:
        bad = v.vm_functions & 1 and not (ept and address_ok(v.eptp_list_address, 12, caps))
        if bad or v.vm_functions & ~<uint64_t> caps.vm_functions:
            failed |= 1 << 15
    if second & VE and not address_ok(v.ve_information_address, 12, caps):
        failed |= 1 << 16
    if v.pin_based & PIN_VIRTUAL_NMI:
        if not v.pin_based & PIN_NMI:
            failed |= 1 << 17
    elif v.primary & PRIMARY_NMI_WINDOW:
        failed |= 1 << 17
    return failed


cdef int invalid_state(const Vmcs *v, const GuestFields *g, const Mem *mem, const EntryCaps *caps,
                       uint64_t *qualification) noexcept nogil:
    # number of the first check that fails (Gn), 0 if none. mem: holds the PDPTEs of a guest in PAE mode without EPT
    cdef uint32_t second = v.secondary if v.primary & PRIMARY_SECONDARY else 0
    cdef uint64_t exempt = (CR0_PE | CR0_PG) if second & SECONDARY_UNRESTRICTED else 0
    cdef bint long_mode = v.vm_entry & ENTRY_LONG_MODE != 0
    cdef bint paging = g.cr0 & CR0_PG != 0, pae = g.cr4 & CR4_PAE != 0
    cdef bint lma = g.efer & EFER_LMA != 0, lme = g.efer & EFER_LME != 0
    cdef uint64_t entry, base
    cdef int i, kind
    qualification[0] = 0
    if (caps.cr0_must & ~exempt & ~g.cr0 or g.cr0 & ~caps.cr0_may or caps.cr4_must & ~g.cr4
            or g.cr4 & ~caps.cr4_may or (paging and not g.cr0 & CR0_PE)
            or (g.cr4 & CR4_CET and not g.cr0 & CR0_WP)):
        return 1
    if not (paging and pae) if long_mode else g.cr4 & CR4_PCIDE != 0:
        return 2
    if g.cr3 >> caps.maxphyaddr:
        return 3
    if v.vm_entry & ENTRY_LOAD_EFER and (g.efer & ~EFER_DEFINED or lma != long_mode or (paging and lma != lme)):
        return 4
    if v.vm_entry & ENTRY_LOAD_PAT:
        for i in range(8):
            kind = g.pat >> (8 * i) & 0xFF
            if kind > 7 or kind == 2 or kind == 3:
                return 4
    if g.rflags & RFLAGS_VM and (long_mode or not g.cr0 & CR0_PE):
        return 5
    if paging and pae and not long_mode:
        base = g.cr3 & 0xFFFFFFE0U
        for i in range(4):
            entry = g.pdpte[i]
            if not second & SECONDARY_EPT:
                entry = mem_read64(mem, base + 8 * i) if mem != NULL and mem_holds(mem, base + 8 * i, 8) else 0
            if entry & 1 and (entry & 0x1E6 or entry >> caps.maxphyaddr):
                qualification[0] = 2
                return 6
    return 0


cdef int invalid_registers(const Vmcs *v, const Paging *hw, const Mem *mem, uint64_t *qualification) noexcept nogil:
    # invalid_state() of a guest that the machine runs. Under shadow paging it pages, and CR0.NE and CR4.VMXE are on
    # whatever the guest thinks: the VMM owns them.
    cdef GuestFields g
    cdef EntryCaps caps = MACHINE
    while not hw.frame >> (caps.maxphyaddr - 1):
        caps.maxphyaddr -= 1
    if secondary_control(v, SECONDARY_EPT):
        g.cr0, g.cr3, g.cr4, g.efer = v.guest_cr0, v.guest_cr3, v.guest_cr4, v.guest_efer
        g.pat = hw.pat
        g.rflags = v.guest_rflags
        memcpy(g.pdpte, v.guest_pdpte, sizeof(g.pdpte))
        return invalid_state(v, &g, mem, &caps, qualification)
    g.cr0 = MACHINE.cr0_must
    g.cr3 = hw.cr3
    g.cr4 = MACHINE.cr4_must | (CR4_PAE if hw.entry_shift == 3 else 0) | (CR4_PCIDE if hw.pcid_on else 0)
    g.efer = EFER_LMA | EFER_LME if hw.lma else 0
    g.pat = hw.pat
    g.rflags = RFLAGS_FIXED
    memcpy(g.pdpte, hw.pdpte, sizeof(g.pdpte))
    return invalid_state(v, &g, mem, &caps, qualification)
