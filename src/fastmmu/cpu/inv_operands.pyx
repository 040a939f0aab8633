"""INVEPT, INVVPID and INVPCID up to the point where they invalidate; header: cpu/inv_operands.pxd."""

from libc.stdint cimport uint64_t

from fastmmu.arch.vmx cimport CAP_INVEPT, CAP_INVVPID, eptp_valid
from fastmmu.paging.guest cimport canonical


cdef inline uint64_t type_of(const Executing *x, uint64_t register) noexcept nogil:
    # outside 64-bit mode the register operand has 32 bits
    return register if x.mode == IN_64_BIT else register & 0xFFFFFFFFULL


cdef inline int fail(const Executing *x) noexcept nogil:
    return INV_FAIL_VALID if x.current_vmcs else INV_FAIL_INVALID


cdef int vmx_check(const Executing *x, uint64_t supported) noexcept nogil:
    # what INVEPT and INVVPID have in common; a VM exit comes before the check of the CPL
    if x.vmx == VMX_OFF or x.mode not in (IN_PROTECTED, IN_64_BIT) or not x.caps & supported:
        return INV_UD
    if x.vmx == VMX_NON_ROOT:
        return INV_EXIT
    return INV_GP if x.cpl else INV_DONE


cdef int invept_check(const Executing *x, InvOperands d) noexcept nogil:
    # bits 127:64 of the descriptor are reserved, but not checked
    cdef uint64_t kind = type_of(x, d.type)
    cdef int common = vmx_check(x, CAP_INVEPT)
    if common:
        return common
    if kind not in (1, 2) or not x.caps >> (24 + kind) & 1:
        return fail(x)
    if kind == 1 and not eptp_valid(d.low, x.caps, x.maxphyaddr):
        return fail(x)
    return INV_DONE


cdef int invvpid_check(const Executing *x, InvOperands d) noexcept nogil:
    cdef uint64_t kind = type_of(x, d.type)
    cdef int common = vmx_check(x, CAP_INVVPID)
    if common:
        return common
    if kind > 3 or not x.caps >> (40 + kind) & 1:
        return fail(x)
    if d.low >> 16 or (kind != 2 and d.low == 0):
        return fail(x)
    if kind == 0 and not canonical(d.high, x.la_bits):
        return fail(x)
    return INV_DONE


cdef int invpcid_check(const Executing *x, InvOperands d) noexcept nogil:
    # the CPL is checked before a VM exit, the operands after it
    cdef uint64_t kind = type_of(x, d.type)
    if not x.invpcid or (x.vmx == VMX_NON_ROOT and not x.enable_invpcid):
        return INV_UD
    if x.mode == IN_V86 or x.cpl:
        return INV_GP
    if x.vmx == VMX_NON_ROOT and x.invlpg_exiting:
        return INV_EXIT
    if kind > 3 or d.low >> 12:
        return INV_GP
    if kind < 2 and d.low and not x.pcide:
        return INV_GP
    if kind == 0 and not canonical(d.high, x.la_bits):
        return INV_GP
    return INV_DONE
