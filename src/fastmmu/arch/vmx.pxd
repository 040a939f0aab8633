# The VMCS: controls and exit information as far as this machine uses them (vmx.md §1, §2, §6), and what entry checks.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #define FM_PIN_EXTERNAL_INTERRUPT  (1u << 0)
    #define FM_PIN_VIRTUAL_NMI         (1u << 5)
    #define FM_PIN_POSTED              (1u << 7)
    #define FM_PRIMARY_INTERRUPT_WINDOW (1u << 2)
    #define FM_PRIMARY_INVLPG          (1u << 9)
    #define FM_PRIMARY_CR3_LOAD        (1u << 15)
    #define FM_PRIMARY_CR3_STORE       (1u << 16)
    #define FM_PRIMARY_CR8_LOAD        (1u << 19)
    #define FM_PRIMARY_CR8_STORE       (1u << 20)
    #define FM_PRIMARY_TPR_SHADOW      (1u << 21)
    #define FM_PRIMARY_NMI_WINDOW      (1u << 22)
    #define FM_PRIMARY_MONITOR_TRAP    (1u << 27)
    #define FM_PRIMARY_MSR_BITMAPS     (1u << 28)
    #define FM_PRIMARY_SECONDARY       (1u << 31)
    #define FM_SECONDARY_APIC_ACCESSES (1u << 0)
    #define FM_SECONDARY_EPT           (1u << 1)
    #define FM_SECONDARY_X2APIC        (1u << 4)
    #define FM_SECONDARY_VPID          (1u << 5)
    #define FM_SECONDARY_UNRESTRICTED  (1u << 7)
    #define FM_SECONDARY_APIC_REGISTERS (1u << 8)
    #define FM_SECONDARY_VIRTUAL_INTERRUPTS (1u << 9)
    #define FM_SECONDARY_INVPCID       (1u << 12)
    #define FM_SECONDARY_MBEC          (1u << 22)
    #define FM_EXIT_HOST_64            (1u << 9)
    #define FM_EXIT_ACK_INTERRUPT      (1u << 15)
    #define FM_EXIT_SAVE_PAT           (1u << 18)
    #define FM_EXIT_LOAD_PAT           (1u << 19)
    #define FM_EXIT_SAVE_EFER          (1u << 20)
    #define FM_EXIT_LOAD_EFER          (1u << 21)
    #define FM_ENTRY_LONG_MODE         (1u << 9)
    #define FM_ENTRY_LOAD_PAT          (1u << 14)
    #define FM_ENTRY_LOAD_EFER         (1u << 15)
    #define FM_INTERRUPTION_PF         0x80000B0Eu
    #define FM_INTERRUPTION_GP         0x80000B0Du
    #define FM_CAP_WALK_4              (1ULL << 6)
    #define FM_CAP_WALK_5              (1ULL << 7)
    #define FM_CAP_TYPE_UC             (1ULL << 8)
    #define FM_CAP_TYPE_WB             (1ULL << 14)
    #define FM_CAP_INVEPT              (1ULL << 20)
    #define FM_CAP_AD                  (1ULL << 21)
    #define FM_CAP_SHADOW_STACK        (1ULL << 23)
    #define FM_CAP_INVVPID             (1ULL << 32)
    /* execute-only, walks, types, 2M and 1G pages, INVEPT and both types, A/D, advanced information, INVVPID and all
       types; no supervisor shadow stacks */
    #define FM_CAP_ALL                 0x00000F01067341C1ULL
    #define FM_SECONDARY_PML           (1u << 17)
    """
    const uint32_t PIN_EXTERNAL_INTERRUPT "FM_PIN_EXTERNAL_INTERRUPT"
    const uint32_t PIN_VIRTUAL_NMI "FM_PIN_VIRTUAL_NMI"
    const uint32_t PIN_POSTED "FM_PIN_POSTED"
    const uint32_t PRIMARY_INTERRUPT_WINDOW "FM_PRIMARY_INTERRUPT_WINDOW"
    const uint32_t PRIMARY_INVLPG "FM_PRIMARY_INVLPG"
    const uint32_t PRIMARY_CR3_LOAD "FM_PRIMARY_CR3_LOAD"
    const uint32_t PRIMARY_CR3_STORE "FM_PRIMARY_CR3_STORE"
    const uint32_t PRIMARY_CR8_LOAD "FM_PRIMARY_CR8_LOAD"
    const uint32_t PRIMARY_CR8_STORE "FM_PRIMARY_CR8_STORE"
    const uint32_t PRIMARY_TPR_SHADOW "FM_PRIMARY_TPR_SHADOW"
    const uint32_t PRIMARY_NMI_WINDOW "FM_PRIMARY_NMI_WINDOW"
    const uint32_t PRIMARY_MONITOR_TRAP "FM_PRIMARY_MONITOR_TRAP"
    const uint32_t PRIMARY_MSR_BITMAPS "FM_PRIMARY_MSR_BITMAPS"
    const uint32_t PRIMARY_SECONDARY "FM_PRIMARY_SECONDARY"
    const uint32_t SECONDARY_APIC_ACCESSES "FM_SECONDARY_APIC_ACCESSES"
    const uint32_t SECONDARY_EPT "FM_SECONDARY_EPT"
    const uint32_t SECONDARY_X2APIC "FM_SECONDARY_X2APIC"
    const uint32_t SECONDARY_VPID "FM_SECONDARY_VPID"
    const uint32_t SECONDARY_UNRESTRICTED "FM_SECONDARY_UNRESTRICTED"
    const uint32_t SECONDARY_APIC_REGISTERS "FM_SECONDARY_APIC_REGISTERS"
    const uint32_t SECONDARY_VIRTUAL_INTERRUPTS "FM_SECONDARY_VIRTUAL_INTERRUPTS"
    const uint32_t SECONDARY_INVPCID "FM_SECONDARY_INVPCID"
    const uint32_t SECONDARY_MBEC "FM_SECONDARY_MBEC"
    const uint32_t EXIT_HOST_64 "FM_EXIT_HOST_64"
    const uint32_t EXIT_ACK_INTERRUPT "FM_EXIT_ACK_INTERRUPT"
    const uint32_t EXIT_SAVE_PAT "FM_EXIT_SAVE_PAT"
    const uint32_t EXIT_LOAD_PAT "FM_EXIT_LOAD_PAT"
    const uint32_t EXIT_SAVE_EFER "FM_EXIT_SAVE_EFER"
    const uint32_t EXIT_LOAD_EFER "FM_EXIT_LOAD_EFER"
    const uint32_t ENTRY_LONG_MODE "FM_ENTRY_LONG_MODE"
    const uint32_t ENTRY_LOAD_PAT "FM_ENTRY_LOAD_PAT"
    const uint32_t ENTRY_LOAD_EFER "FM_ENTRY_LOAD_EFER"
    const uint32_t INTERRUPTION_PF "FM_INTERRUPTION_PF"     # valid, error code, hardware exception, vector
    const uint32_t INTERRUPTION_GP "FM_INTERRUPTION_GP"
    const uint64_t CAP_WALK_4 "FM_CAP_WALK_4"           # bits of IA32_VMX_EPT_VPID_CAP (ept.md §1)
    const uint64_t CAP_WALK_5 "FM_CAP_WALK_5"
    const uint64_t CAP_TYPE_UC "FM_CAP_TYPE_UC"
    const uint64_t CAP_TYPE_WB "FM_CAP_TYPE_WB"
    const uint64_t CAP_INVEPT "FM_CAP_INVEPT"
    const uint64_t CAP_AD "FM_CAP_AD"
    const uint64_t CAP_SHADOW_STACK "FM_CAP_SHADOW_STACK"
    const uint64_t CAP_INVVPID "FM_CAP_INVVPID"
    const uint64_t CAP_ALL "FM_CAP_ALL"
    const uint32_t SECONDARY_PML "FM_SECONDARY_PML"

cdef enum:
    VECTOR_UD = 6
    VECTOR_GP = 13
    VECTOR_PF = 14
    ERROR_CONTROL_FIELDS = 7    # VM-instruction error: entry with invalid control fields

cdef enum ExitReasonCode:       # basic exit reasons, fastmmu.exits.ExitReason (vmx.md §5)
    EXIT_EXCEPTION_NMI = 0
    EXIT_EXTERNAL_INTERRUPT = 1
    EXIT_TRIPLE_FAULT = 2
    EXIT_INTERRUPT_WINDOW = 7
    EXIT_NMI_WINDOW = 8
    EXIT_TASK_SWITCH = 9
    EXIT_CPUID = 10
    EXIT_HLT = 12
    EXIT_INVD = 13
    EXIT_INVLPG = 14
    EXIT_RDTSC = 16
    EXIT_VMCALL = 18
    EXIT_VMLAUNCH = 20
    EXIT_VMRESUME = 24
    EXIT_CR_ACCESS = 28
    EXIT_DR_ACCESS = 29
    EXIT_IO_INSTRUCTION = 30
    EXIT_RDMSR = 31
    EXIT_WRMSR = 32
    EXIT_ENTRY_FAILURE_GUEST_STATE = 33
    EXIT_ENTRY_FAILURE_MSR = 34
    EXIT_MWAIT = 36
    EXIT_MONITOR_TRAP = 37
    EXIT_MONITOR = 39
    EXIT_PAUSE = 40
    EXIT_TPR_BELOW_THRESHOLD = 43
    EXIT_APIC_ACCESS = 44
    EXIT_VIRTUALIZED_EOI = 45
    EXIT_GDTR_IDTR = 46
    EXIT_LDTR_TR = 47
    EXIT_EPT_VIOLATION = 48
    EXIT_EPT_MISCONFIG = 49
    EXIT_INVEPT = 50
    EXIT_RDTSCP = 51
    EXIT_PREEMPTION_TIMER = 52
    EXIT_INVVPID = 53
    EXIT_WBINVD = 54
    EXIT_XSETBV = 55
    EXIT_APIC_WRITE = 56
    EXIT_RDRAND = 57
    EXIT_INVPCID = 58
    EXIT_VMFUNC = 59
    EXIT_ENCLS = 60
    EXIT_RDSEED = 61
    EXIT_PML_FULL = 62
    EXIT_XSAVES = 63
    EXIT_XRSTORS = 64
    EXIT_SPP_EVENT = 66
    EXIT_BUS_LOCK = 74
    EXIT_NOTIFY = 75
    EXIT_NPF = 80               # of AMD (VMEXIT_NPF, 400H there)

cdef enum:
    N_REASONS = 81              # tables by exit reason have so many rows
    VMX_REASONS = 80            # of them, those of VMX

cdef struct Vmcs:
    uint32_t pin_based, primary, secondary, vm_exit, vm_entry
    uint64_t tertiary
    uint32_t exception_bitmap, pfec_mask, pfec_match
    uint32_t cr3_target_count
    uint64_t cr3_target[4]      # values that MOV to CR3 may load without an exit, the first cr3_target_count of them
    uint16_t vpid
    uint64_t eptp
    uint16_t posted_vector, guest_interrupt_status      # the latter: RVI 7:0, SVI 15:8
    uint32_t tpr_threshold
    uint64_t virtual_apic_address, apic_access_address, posted_descriptor_address
    uint64_t eoi_exit_bitmap[4]
    uint64_t vm_functions, eptp_list_address, pml_address, ve_information_address, sppt_pointer
    uint16_t pml_index          # next entry of the page-modification log, counting down
    uint64_t cr0_mask, cr4_mask             # bits of CR0, CR4 that the VMM owns
    uint64_t cr0_shadow, cr4_shadow         # what the guest reads of them
    # guest state that paging depends on: VM entry loads it, VM exit saves CR0, CR3, CR4 and the PDPTEs of PAE paging
    uint64_t guest_cr0, guest_cr3, guest_cr4, guest_efer, guest_rflags
    uint64_t guest_pdpte[4]
    uint32_t exit_reason
    uint32_t exit_interruption_info     # of an exception: vector, type, valid
    uint32_t exit_interruption_error    # and its error code
    uint64_t exit_qualification
    uint64_t guest_physical_address
    uint64_t guest_linear_address
    uint64_t operand            # source of MOV to CR: the register that the qualification names; RDMSR, WRMSR: ECX


cdef inline void clear_exit_information(Vmcs *vmcs) noexcept nogil:
    # before an exit: fields that its reason does not define read 0 (vmx.md §8)
    vmcs.exit_interruption_info = vmcs.exit_interruption_error = 0
    vmcs.exit_qualification = vmcs.guest_physical_address = vmcs.guest_linear_address = vmcs.operand = 0


cdef inline bint secondary_control(const Vmcs *vmcs, uint32_t bit) noexcept nogil:
    # without "activate secondary controls" all of them act as 0
    return vmcs.primary & PRIMARY_SECONDARY and vmcs.secondary & bit


cdef inline bint cr3_exits(const Vmcs *vmcs, uint64_t value) noexcept nogil:
    # of MOV to CR3 (vmx.md §6): the whole source operand counts
    cdef uint32_t i
    if not vmcs.primary & PRIMARY_CR3_LOAD:
        return False
    for i in range(vmcs.cr3_target_count):
        if vmcs.cr3_target[i] == value:
            return False
    return True


cdef inline bint page_fault_exits(const Vmcs *vmcs, uint32_t code) noexcept nogil:
    # vmx.md §6: bit 14 of the exception bitmap, turned around where the error code does not match
    cdef bint bit = vmcs.exception_bitmap >> VECTOR_PF & 1
    return bit if (code & vmcs.pfec_mask) == vmcs.pfec_match else not bit


cdef inline bint eptp_valid(uint64_t eptp, uint64_t caps, int maxphyaddr) noexcept nogil:
    # for VM entry, INVEPT type 1 and VMFUNC 0 (ept.md §1); caps: IA32_VMX_EPT_VPID_CAP
    cdef uint64_t needs = CAP_TYPE_UC if eptp & 7 == 0 else CAP_TYPE_WB if eptp & 7 == 6 else 0
    cdef uint64_t walk = CAP_WALK_4 if eptp >> 3 & 7 == 3 else CAP_WALK_5 if eptp >> 3 & 7 == 4 else 0
    if not needs or not walk or eptp & 0xF00 or eptp >> maxphyaddr:
        return False
    needs |= walk | (CAP_AD if eptp & 0x40 else 0) | (CAP_SHADOW_STACK if eptp & 0x80 else 0)
    return caps & needs == needs
