"""What operations there are, and which instructions exit. Header: vmx/operations.pxd."""

from libc.stdint cimport uint8_t, uint64_t

from fastmmu.arch.ops cimport (
    GUEST_EVENT_READ, GUEST_EVENT_WRITE, GUEST_MOV_TO_CR0, LAST_ACCESS, OP_EXIT, OP_IPI, OP_SWITCH, OP_TSC_DEADLINE,
    OP_UNMAP,
)
from fastmmu.arch.types cimport ACC_X
from fastmmu.arch.vmx cimport (
    EXIT_CPUID, EXIT_CR_ACCESS, EXIT_DR_ACCESS, EXIT_GDTR_IDTR, EXIT_HLT, EXIT_INVD, EXIT_INVEPT, EXIT_INVLPG,
    EXIT_INVPCID, EXIT_INVVPID, EXIT_IO_INSTRUCTION, EXIT_LDTR_TR, EXIT_MONITOR, EXIT_MWAIT, EXIT_PAUSE, EXIT_RDMSR,
    EXIT_RDRAND, EXIT_RDSEED, EXIT_RDTSC, EXIT_RDTSCP, EXIT_TASK_SWITCH, EXIT_TRIPLE_FAULT, EXIT_VMCALL,
    EXIT_VMFUNC, EXIT_WBINVD, EXIT_WRMSR, EXIT_XSETBV, N_REASONS, Vmcs, secondary_control,
)
from fastmmu.cpu.access cimport data_size

cdef enum:
    ALWAYS = 1                  # Instruction.word
    IF_PRIMARY = 2
    IF_SECONDARY = 3
    OWN_OPERATION = 4

cdef struct Instruction:        # of which only the exit matters: which control makes it exit
    uint8_t word, bit
    bint cpl0                   # else #GP, before the exit

cdef Instruction instruction[N_REASONS]


cdef void exits(int reason, int word, int bit, bint cpl0) noexcept:
    instruction[reason].word = word
    instruction[reason].bit = bit
    instruction[reason].cpl0 = cpl0

for _reason in (EXIT_TRIPLE_FAULT, EXIT_TASK_SWITCH, EXIT_CPUID, 11, EXIT_INVEPT, EXIT_INVVPID, EXIT_VMFUNC):
    exits(_reason, ALWAYS, 0, False)
for _reason in range(EXIT_VMCALL, 28):          # VMCALL and the other VMX instructions
    exits(_reason, ALWAYS, 0, False)
exits(EXIT_INVD, ALWAYS, 0, True)
exits(EXIT_XSETBV, ALWAYS, 0, True)
exits(EXIT_HLT, IF_PRIMARY, 7, True)
exits(EXIT_MWAIT, IF_PRIMARY, 10, False)
exits(15, IF_PRIMARY, 11, False)                # RDPMC
exits(EXIT_RDTSC, IF_PRIMARY, 12, False)
exits(EXIT_RDTSCP, IF_PRIMARY, 12, False)
exits(EXIT_DR_ACCESS, IF_PRIMARY, 23, True)
exits(EXIT_IO_INSTRUCTION, IF_PRIMARY, 24, False)
exits(EXIT_MONITOR, IF_PRIMARY, 29, False)
exits(EXIT_PAUSE, IF_PRIMARY, 30, False)
exits(EXIT_GDTR_IDTR, IF_SECONDARY, 2, False)
exits(EXIT_LDTR_TR, IF_SECONDARY, 2, False)
exits(EXIT_WBINVD, IF_SECONDARY, 6, True)
exits(EXIT_RDRAND, IF_SECONDARY, 11, False)
exits(EXIT_RDSEED, IF_SECONDARY, 16, False)
for _reason in (EXIT_INVLPG, EXIT_CR_ACCESS, EXIT_RDMSR, EXIT_WRMSR, EXIT_INVPCID):
    exits(_reason, OWN_OPERATION, 0, False)


cdef int check_one(int op, uint8_t size, uint64_t addr, bint moves) noexcept nogil:
    if op <= LAST_ACCESS or op == GUEST_EVENT_READ or op == GUEST_EVENT_WRITE:
        return BAD_SIZE if moves and op != ACC_X and (size > 8 or not data_size(size)) else BAD_NOTHING
    if op in (OP_SWITCH, OP_UNMAP, OP_IPI, OP_TSC_DEADLINE):
        return BAD_OF_TRACES
    if op == OP_EXIT:
        if addr >= N_REASONS or not instruction[addr].word:
            return BAD_NO_INSTRUCTION
        return BAD_HAS_OWN if instruction[addr].word == OWN_OPERATION else BAD_NOTHING
    if OP_SWITCH <= op <= OP_TSC_DEADLINE or GUEST_MOV_TO_CR0 <= op <= GUEST_EVENT_WRITE:
        return BAD_NOTHING
    return BAD_UNKNOWN


cdef int operations_check(const uint8_t *op, const uint8_t *size, const uint64_t *addr, uint64_t n, bint moves,
                          uint64_t *bad) noexcept nogil:
    cdef uint64_t i
    cdef int fault
    for i in range(n):
        if op[i] <= LAST_ACCESS and not moves:
            continue
        fault = check_one(op[i], size[i], addr[i], moves)
        if fault:
            bad[0] = i
            return fault
    return BAD_NOTHING


cdef bint instruction_privileged(uint64_t reason) noexcept nogil:
    return instruction[reason].cpl0


cdef bint instruction_exits(const Vmcs *vmcs, uint64_t reason) noexcept nogil:
    # vmx.md §2: where the control that is its own says so
    cdef const Instruction *i = &instruction[reason]
    if i.word == IF_PRIMARY:
        return vmcs.primary >> i.bit & 1
    if i.word == IF_SECONDARY:
        return secondary_control(vmcs, 1U << i.bit)
    return True
