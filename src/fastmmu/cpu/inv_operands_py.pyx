"""`check_invalidation`: INVEPT, INVVPID and INVPCID up to the point where they invalidate, for Python."""

from fastmmu.arch.vmx cimport CAP_ALL
from fastmmu.cpu.inv_operands cimport (
    IN_64_BIT, IN_COMPATIBILITY, IN_PROTECTED, IN_REAL, IN_V86, VMX_NON_ROOT, VMX_OFF, VMX_ROOT, Executing, InvOperands,
    invept_check, invpcid_check, invvpid_check,
)

from fastmmu.errors import StateError
from fastmmu.exits import Completion

EPT_VPID_CAP = CAP_ALL
"""IA32_VMX_EPT_VPID_CAP of a processor with everything but supervisor shadow stacks."""

_MODES = {"real": IN_REAL, "v86": IN_V86, "protected": IN_PROTECTED, "compatibility": IN_COMPATIBILITY,
          "64-bit": IN_64_BIT}
_VMX = {"off": VMX_OFF, "root": VMX_ROOT, "non-root": VMX_NON_ROOT}


def _choice(str what, object value, dict choices):
    if value not in choices:
        raise StateError(f"{what} {value!r}; choose from {', '.join(choices)}")
    return choices[value]


def _within(str what, int value, int low, int high):
    if not low <= value <= high:
        raise StateError(f"{what}={value} is outside {low}..{high}")
    return value


def check_invalidation(instruction, type, descriptor, *, caps=EPT_VPID_CAP, mode="64-bit", vmx="root", cpl=0,
                       maxphyaddr=52, la_bits=48, pcide=True, current_vmcs=True, invpcid=True, enable_invpcid=True,
                       invlpg_exiting=False):
    """What INVEPT, INVVPID or INVPCID ends in; DONE where it goes on to invalidate (tlb.md §4, §5.1).

    :param instruction: "invept", "invvpid" or "invpcid". :param type: the register operand, 64 bits.
    :param descriptor: the memory operand as (bits 63:0, bits 127:64).
    :param caps: IA32_VMX_EPT_VPID_CAP. :param mode: "real", "v86", "protected", "compatibility" or "64-bit".
    :param vmx: VMX operation: "off", "root" or "non-root". :param maxphyaddr: M, 32..52. :param la_bits: 48 or 57.
    :param pcide: CR4.PCIDE. :param current_vmcs: without one, VMfail cannot store its number.
    :param invpcid: CPUID.INVPCID. :param enable_invpcid, invlpg_exiting: VM-execution controls.
    :returns: :class:`fastmmu.exits.Completion`.
    :raises StateError: a parameter that no processor has.
    """
    cdef Executing x
    cdef InvOperands d
    try:
        d.type, (d.low, d.high) = type, descriptor
        x.caps = caps
    except OverflowError:
        raise StateError(f"{instruction} {type}, {descriptor}, caps {caps}: give unsigned 64-bit numbers") from None
    x.mode = _choice("mode", mode, _MODES)
    x.vmx = _choice("vmx", vmx, _VMX)
    x.cpl = _within("cpl", cpl, 0, 3)
    x.maxphyaddr = _within("maxphyaddr", maxphyaddr, 32, 52)
    if la_bits not in (48, 57):
        raise StateError(f"la_bits={la_bits} is neither 48 nor 57")
    x.la_bits = la_bits
    x.pcide, x.current_vmcs, x.invpcid = bool(pcide), bool(current_vmcs), bool(invpcid)
    x.enable_invpcid, x.invlpg_exiting = bool(enable_invpcid), bool(invlpg_exiting)
    if instruction == "invept":
        return Completion(invept_check(&x, d))
    if instruction == "invvpid":
        return Completion(invvpid_check(&x, d))
    if instruction == "invpcid":
        return Completion(invpcid_check(&x, d))
    raise StateError(f"instruction {instruction!r}; choose from invept, invvpid, invpcid")
