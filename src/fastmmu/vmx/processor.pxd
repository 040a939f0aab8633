# A logical processor with VMX: the core (Vcpu), the fields of its current VMCS, and the guest's operations under way.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmmu.arch.registers cimport Registers
from fastmmu.cpu.vapic cimport Vapic
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.cpu.vmentry cimport EntryCaps

cdef enum VmInstructionError:   # SDM volume 3, "VM instruction error numbers"; fastmmu.errors.VM_INSTRUCTION_ERRORS
    ERROR_VMCLEAR_ADDRESS = 2
    ERROR_VMCLEAR_VMXON = 3
    ERROR_VMLAUNCH_STATE = 4
    ERROR_VMRESUME_STATE = 5
    ERROR_ENTRY_CONTROLS = 7
    ERROR_ENTRY_HOST = 8
    ERROR_VMPTRLD_ADDRESS = 9
    ERROR_VMPTRLD_VMXON = 10
    ERROR_VMPTRLD_REVISION = 11
    ERROR_NO_FIELD = 12
    ERROR_READ_ONLY = 13
    ERROR_MOV_SS = 26
    ERROR_INVALIDATION = 28

cdef enum InstructionEnd:       # what an instruction of VMX root operation ends in, where it is no VmInstructionError
    END_DONE = 0
    END_INVALID = -1            # VMfailInvalid: no current VMCS
    END_BUS = -2                # memory that is not there: Processor.missing
    END_EXIT = -3               # VM entry became a VM exit
    END_NOT_MODELLED = -4       # a control that is valid and not carried out here: Processor.unmodelled

cdef enum RunEnd:
    RUN_ALL = 0                 # all operations are done
    RUN_EXIT = 1                # VM exit
    RUN_EVENT = 2               # an event was delivered to the guest
    RUN_STOP = 3                # it cannot go on: Vcpu.abort

cdef enum:
    N_OTHER = 112               # fields that are stored only
    N_SLOTS = 192
    REVISION = 0x464D0001       # VMCS revision identifier: of the layout below
    LAUNCHED = 1                # state of a VMCS region
    CURRENT = 2
    N_EVENTS = 4

cdef struct Rest:               # fields of a VMCS that arch.vmx.Vmcs does not have
    uint64_t guest_pat, guest_rip, link_pointer
    uint64_t host_cr0, host_cr3, host_cr4, host_efer, host_pat, host_rip
    uint64_t msr_bitmap, entry_msr_address
    uint32_t entry_msr_count, exit_msr_store_count, exit_msr_load_count
    uint32_t entry_event, entry_event_error, entry_event_length
    uint32_t interruptibility, activity, ss_rights
    uint32_t instruction_error
    uint32_t vectoring, vectoring_error, exit_length, exit_instruction
    uint64_t other[N_OTHER]

cdef struct Slot:               # where a field is in a Processor
    uint16_t offset
    uint8_t nbytes
    uint8_t width               # bits: 16, 32, 64; natural width is 64
    uint8_t halves              # a 64-bit field, of which the high half has an encoding
    uint8_t read_only

cdef struct Event:              # delivered to the guest through its IDT
    uint32_t info               # as in an interruption-information field
    uint32_t error_code
    uint64_t cr2

cdef struct Processor:
    Vcpu cpu                    # first: see to_processor. cpu.vmcs: the core's fields of the current VMCS
    Vapic apic
    Rest rest
    EntryCaps caps
    uint64_t vmxon, current     # addresses; all ones: none
    uint64_t missing
    uint64_t unmodelled
    uint64_t failed             # checks of VM entry that failed, bits by entry.pxd
    bint vmwrite_any            # IA32_VMX_MISC bit 29: exit information can be written
    uint8_t exists[N_SLOTS]
    bint in_guest               # VMX non-root operation
    Registers host              # in VMX root operation, but what VM exit loads from the VMCS
    # the guest
    uint8_t cpl
    bint interrupts_on          # RFLAGS.IF
    uint32_t iopl
    bint trap                   # monitor trap flag
    bint attention              # something may be due before the next operation
    uint64_t held[4]            # external interrupts that wait for RFLAGS.IF, where they do not exit
    Event event[N_EVENTS]       # delivered and not reported yet
    uint32_t n_events
    Event last                  # the last one delivered
    # its operations
    const uint8_t *op
    const uint8_t *size
    const uint64_t *addr
    uint64_t *data              # or NULL: no data move
    uint64_t n, i               # all; the next one
    uint64_t pause              # up to which others may not get in between
    bint executing              # an exit is by operation i; else between two
    bint complete               # the exit came after its operation
    bint delivering             # operation i is an access of event delivery
    uint64_t value              # read last
    uint64_t exit_value         # EDX:EAX of WRMSR
    uint64_t apic_la            # where the guest sees its APIC


cdef inline Processor *to_processor(Vcpu *v) noexcept nogil:
    return <Processor *> v
