# INVEPT, INVVPID, INVPCID up to the point where they invalidate: exceptions, VM exit, operand checks (tlb.md §4, §5.1).
# The memory operand has been read: #PF and #SS are those of any load.

from libc.stdint cimport uint8_t, uint64_t

cdef enum InvCompletion:        # fastmmu.exits.Completion
    INV_DONE = 0
    INV_UD = 1
    INV_EXIT = 2
    INV_GP = 3
    INV_FAIL_INVALID = 4
    INV_FAIL_VALID = 5

cdef enum:                      # operating mode
    IN_REAL = 0
    IN_V86 = 1
    IN_PROTECTED = 2
    IN_COMPATIBILITY = 3
    IN_64_BIT = 4

cdef enum:                      # VMX operation
    VMX_OFF = 0
    VMX_ROOT = 1
    VMX_NON_ROOT = 2

cdef struct Executing:          # what the checks depend on
    uint64_t caps               # IA32_VMX_EPT_VPID_CAP
    uint8_t mode, vmx, cpl
    uint8_t maxphyaddr          # M
    uint8_t la_bits             # 48 or 57
    uint8_t pcide               # CR4.PCIDE
    uint8_t current_vmcs        # there is one
    uint8_t invpcid             # CPUID: the instruction exists
    uint8_t enable_invpcid, invlpg_exiting      # VM-execution controls

cdef struct InvOperands:
    uint64_t type               # register operand
    uint64_t low, high          # descriptor: bits 63:0, 127:64

cdef int invept_check(const Executing *x, InvOperands d) noexcept nogil
cdef int invvpid_check(const Executing *x, InvOperands d) noexcept nogil
cdef int invpcid_check(const Executing *x, InvOperands d) noexcept nogil
