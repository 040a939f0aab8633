"""`check_invalidation`: INVEPT, INVVPID and INVPCID up to the point where they invalidate, for Python."""

from fastmmu._arguments cimport choice, counted, flag, many, shown, whole, within, word
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
    cdef str named = choice("instruction", instruction, ("invept", "invvpid", "invpcid"))
    halves = many("descriptor", descriptor)
    if len(halves) != 2:
        raise StateError(f"descriptor={shown(descriptor)}: give its two halves, (bits 63:0, bits 127:64)")
    d.type, d.low, d.high = word("type", type), word("descriptor[0]", halves[0]), word("descriptor[1]", halves[1])
    x.caps = word("caps", caps)
    x.mode = choice("mode", mode, _MODES)
    x.vmx = choice("vmx", vmx, _VMX)
    x.cpl = within("cpl", cpl, 0, 3)
    x.maxphyaddr = within("maxphyaddr", maxphyaddr, 32, 52)
    la_bits = whole("la_bits", la_bits)
    if la_bits not in (48, 57):
        raise StateError(f"la_bits={counted(la_bits)} is neither 48 nor 57")
    x.la_bits = la_bits
    x.pcide, x.current_vmcs = flag("pcide", pcide), flag("current_vmcs", current_vmcs)
    x.invpcid, x.enable_invpcid = flag("invpcid", invpcid), flag("enable_invpcid", enable_invpcid)
    x.invlpg_exiting = flag("invlpg_exiting", invlpg_exiting)
    if named == "invept":
        return Completion(invept_check(&x, d))
    if named == "invvpid":
        return Completion(invvpid_check(&x, d))
    return Completion(invpcid_check(&x, d))
