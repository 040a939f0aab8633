"""What VM entry checks, by the numbers of vmx.md: C1 to C18 on control fields, G1 to G6 on guest state."""

from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmmu.arch.registers cimport CR0_PE, CR0_PG, CR4_PAE, CR4_PCIDE, EFER_LMA, EFER_LME, RFLAGS_FIXED, RFLAGS_VM
from fastmmu.arch.vmx cimport (
    CAP_ALL, CAP_WALK_5, ENTRY_LOAD_EFER, ENTRY_LONG_MODE, ERROR_CONTROL_FIELDS, EXIT_ACK_INTERRUPT,
    EXIT_ENTRY_FAILURE_GUEST_STATE, EXIT_TPR_BELOW_THRESHOLD, PIN_EXTERNAL_INTERRUPT, PIN_POSTED, PRIMARY_SECONDARY,
    PRIMARY_TPR_SHADOW, SECONDARY_APIC_ACCESSES, SECONDARY_APIC_REGISTERS, SECONDARY_EPT, SECONDARY_PML,
    SECONDARY_UNRESTRICTED, SECONDARY_VIRTUAL_INTERRUPTS, SECONDARY_VPID, SECONDARY_X2APIC, Vmcs, eptp_valid,
    secondary_control,
)
from fastmmu.cpu.apic cimport APIC_TPR
from fastmmu.cpu.vapic cimport Vapic, vapic_controls, vapic_entered
from fastmmu.paging.memory cimport PhysicalMemory, mem_holds, mem_read64
from fastmmu.errors import StateError

cdef enum:
    PIN_NMI = 1 << 3
    PIN_VIRTUAL_NMI = 1 << 5
    PRIMARY_NMI_WINDOW = 1 << 22
    PRIMARY_TERTIARY = 1 << 17
    VM_FUNCTIONS = 1 << 13
    VE = 1 << 18
    MBEC = 1 << 22
    SPP = 1 << 23
    TERTIARY_NEEDS_EPT = 0xE    # HLAT, paging-write, guest-paging verification
    ENTRY_LOAD_PAT = 1 << 14

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
MACHINE.cr0_may = MACHINE.cr4_may = 0xFFFFFFFFU
MACHINE.maxphyaddr = 52
MACHINE.ept = CAP_ALL


cdef inline bint address_ok(uint64_t address, int aligned, const EntryCaps *caps) noexcept nogil:
    return not address & ((1ULL << aligned) - 1) and not address >> caps.maxphyaddr


cdef uint32_t invalid_controls(const Vmcs *v, uint8_t vtpr, const EntryCaps *caps) noexcept nogil:
    # checks that fail: bit n - 1 for check Cn. vtpr: byte at 080H of the virtual-APIC page
    cdef uint32_t second = v.secondary if v.primary & PRIMARY_SECONDARY else 0
    cdef uint32_t third = v.tertiary if v.primary & PRIMARY_TERTIARY else 0
    cdef bint shadow = v.primary & PRIMARY_TPR_SHADOW != 0
    cdef bint delivery = second & SECONDARY_VIRTUAL_INTERRUPTS != 0
    cdef bint accesses = second & SECONDARY_APIC_ACCESSES != 0
    cdef bint ept = second & SECONDARY_EPT != 0
    cdef bint bad
    cdef uint32_t failed = 0
    if (v.pin_based & ~caps.pin_based or v.primary & ~caps.primary or second & ~caps.secondary
            or third & ~caps.tertiary or v.vm_exit & ~caps.vm_exit or v.vm_entry & ~caps.vm_entry):
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
    elif second & (SECONDARY_UNRESTRICTED | MBEC | SECONDARY_PML | SPP) or third & TERTIARY_NEEDS_EPT:
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
            or g.cr4 & ~caps.cr4_may or (paging and not g.cr0 & CR0_PE)):
        return 1
    if not (paging and pae) if long_mode else g.cr4 & CR4_PCIDE != 0:
        return 2
    if g.cr3 >> caps.maxphyaddr:
        return 3
    if v.vm_entry & ENTRY_LOAD_EFER and (lma != long_mode or (paging and lma != lme)):
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


# ---- for Python -------------------------------------------------------------------------------------------

class Entry(NamedTuple):
    """What VM entry ended in.

    error: VM-instruction error 7, else 0. failed: the checks that failed, as ``"C3"``. reason, qualification: of the VM
    exit that came in place of the first instruction, else None and 0. vppr, pending: with virtual-interrupt delivery.
    """

    error: int
    failed: tuple[str, ...]
    reason: int | None
    qualification: int
    vppr: int
    pending: bool


def vm_entry(*, vtpr=0, maxphyaddr=52, walk5=True, PhysicalMemory memory=None, guest_cr0=0x80000021, guest_cr3=0,
             guest_cr4=0x2020, guest_efer=0, guest_pat=0x0007040600070406, guest_rflags=2, guest_pdpte=(0, 0, 0, 0),
             **fields):
    """VM entry with valid host state: the checks of SDM volume 3, "Checks on VMX controls", "on the guest state".

    :param fields: control fields of the VMCS by name (``pin_based``, ``primary``, ``secondary``, ``eptp``, …; 0 where
        not given). :param vtpr: byte at 080H of the virtual-APIC page. :param memory: holds the PDPTEs of a guest in
        PAE mode without EPT. :param guest_cr0, …: guest state. :returns: :class:`Entry`.
    :raises StateError: a field that the VMCS here does not have, or a value wider than its field.
    """
    cdef Vmcs v
    cdef GuestFields g
    cdef EntryCaps caps = MACHINE
    cdef Vapic apic
    cdef uint8_t page[4096]
    cdef uint64_t qualification = 0
    cdef const Mem *mem = NULL if memory is None else &memory.mem
    if not 32 <= maxphyaddr <= 52:
        raise StateError(f"maxphyaddr={maxphyaddr} is outside 32..52")
    v = _vmcs(fields)
    caps.maxphyaddr = maxphyaddr
    if not walk5:
        caps.ept &= ~CAP_WALK_5
    try:
        g.cr0, g.cr3, g.cr4, g.efer, g.pat, g.rflags = (
            guest_cr0, guest_cr3, guest_cr4, guest_efer, guest_pat, guest_rflags
        )
        for i in range(4):
            g.pdpte[<int> i] = guest_pdpte[i]
        vtpr = <uint8_t> vtpr
    except OverflowError as error:
        raise StateError(f"a register of 64 bits: {error}") from error
    failed = invalid_controls(&v, vtpr, &caps)
    if failed:
        names = tuple(f"C{i + 1}" for i in range(18) if failed >> i & 1)
        return Entry(ERROR_CONTROL_FIELDS, names, None, 0, 0, False)
    state = invalid_state(&v, &g, mem, &caps, &qualification)
    if state:
        return Entry(0, (f"G{state}",), EXIT_ENTRY_FAILURE_GUEST_STATE | ENTRY_FAILURE, qualification, 0, False)
    memset(&apic, 0, sizeof(Vapic))
    memset(page, 0, sizeof(page))
    page[<int> APIC_TPR] = vtpr
    apic.page = page
    vapic_controls(&apic, &v)
    if vapic_entered(&apic):
        return Entry(0, (), EXIT_TPR_BELOW_THRESHOLD, 0, 0, False)
    return Entry(0, (), None, 0, apic.vppr, bool(apic.pending))


cdef Vmcs _vmcs(fields):
    cdef Vmcs v
    memset(&v, 0, sizeof(Vmcs))
    named = {**v, "eoi_exit_bitmap": [0, 0, 0, 0], "guest_pdpte": [0, 0, 0, 0]}
    for name in fields:
        if name not in named:
            raise StateError(f"the VMCS here has no control field {name!r}; it has {', '.join(sorted(named))}")
    try:
        v = {**named, **fields}
    except OverflowError as error:
        raise StateError(f"a value is wider than its field: {error}") from error
    return v
