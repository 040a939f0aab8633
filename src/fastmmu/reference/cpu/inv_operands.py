"""Executable specification of INVEPT, INVVPID and INVPCID up to the point where they invalidate (tlb.md §4, §5.1).

Each function reads as the instruction's own order of checks. The memory operand has been read already.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...exits import Completion
from ..paging.ept import EptCap, eptp_valid
from ..paging.state import bits

__all__ = ["Executing", "check", "invept", "invpcid", "invvpid"]

INVEPT, INVVPID = 1 << 20, 1 << 32
INVEPT_TYPES = {1: 1 << 25, 2: 1 << 26}
INVVPID_TYPES = {0: 1 << 40, 1: 1 << 41, 2: 1 << 42, 3: 1 << 43}
EVERY_CAP = EptCap.ALL | INVEPT | INVVPID | sum(INVEPT_TYPES.values()) | sum(INVVPID_TYPES.values())


@dataclass(frozen=True, kw_only=True)
class Executing:
    """The processor at the instruction. `mode`: real, v86, protected, compatibility, 64-bit; `vmx`: off, root,
    non-root; `caps`: IA32_VMX_EPT_VPID_CAP."""

    caps: int = EVERY_CAP
    mode: str = "64-bit"
    vmx: str = "root"
    cpl: int = 0
    maxphyaddr: int = 52
    la_bits: int = 48
    pcide: bool = True
    current_vmcs: bool = True
    invpcid: bool = True
    enable_invpcid: bool = True
    invlpg_exiting: bool = False

    def register(self, operand: int) -> int:
        return operand if self.mode == "64-bit" else operand & bits(31, 0)

    def canonical(self, la: int) -> bool:
        return la >> (self.la_bits - 1) in (0, bits(63, self.la_bits - 1) >> (self.la_bits - 1))

    @property
    def fail(self) -> Completion:
        """VMfail 28, or VMfailInvalid where no VMCS could hold the number."""
        return Completion.VMFAIL_VALID if self.current_vmcs else Completion.VMFAIL_INVALID


def _vmx_instruction(x: Executing, supported: int) -> Completion | None:
    if x.vmx == "off" or x.mode in ("real", "v86", "compatibility"):
        return Completion.INVALID_OPCODE
    if not x.caps & supported:
        return Completion.INVALID_OPCODE
    if x.vmx == "non-root":
        return Completion.VM_EXIT
    return Completion.GENERAL_PROTECTION if x.cpl > 0 else None


def invept(x: Executing, type: int, low: int, high: int) -> Completion:
    """Bits 127:64 are reserved and not looked at."""
    if (ended := _vmx_instruction(x, INVEPT)) is not None:
        return ended
    if not INVEPT_TYPES.get(x.register(type), 0) & x.caps:
        return x.fail
    if x.register(type) == 1 and not eptp_valid(low, caps=x.caps, maxphyaddr=x.maxphyaddr):
        return x.fail
    return Completion.DONE


def invvpid(x: Executing, type: int, low: int, high: int) -> Completion:
    """The VPID is bits 15:0; type 2 ignores it."""
    if (ended := _vmx_instruction(x, INVVPID)) is not None:
        return ended
    kind = x.register(type)
    if not INVVPID_TYPES.get(kind, 0) & x.caps:
        return x.fail
    if low & bits(63, 16):
        return x.fail
    if kind in (0, 1, 3) and low == 0:
        return x.fail
    if kind == 0 and not x.canonical(high):
        return x.fail
    return Completion.DONE


def invpcid(x: Executing, type: int, low: int, high: int) -> Completion:
    """The PCID is bits 11:0."""
    if not x.invpcid or (x.vmx == "non-root" and not x.enable_invpcid):
        return Completion.INVALID_OPCODE
    if x.mode == "v86" or x.cpl > 0:
        return Completion.GENERAL_PROTECTION
    if x.vmx == "non-root" and x.invlpg_exiting:
        return Completion.VM_EXIT
    kind = x.register(type)
    wrong = (
        kind not in (0, 1, 2, 3)
        or low & bits(63, 12)
        or (kind in (0, 1) and low != 0 and not x.pcide)
        or (kind == 0 and not x.canonical(high))
    )
    return Completion.GENERAL_PROTECTION if wrong else Completion.DONE


def check(instruction: str, x: Executing, type: int, descriptor: tuple[int, int]) -> Completion:
    """By the name of the instruction."""
    return {"invept": invept, "invvpid": invvpid, "invpcid": invpcid}[instruction](x, type, *descriptor)
