"""What a processor with VMX supports: its capability MSRs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastmmu._checked import check_fields
from fastmmu.errors import StateError

__all__ = ["DEFAULT1", "Capabilities"]

DEFAULT1 = {"pin_based": 0x16, "primary": 0x0401E172, "vm_exit": 0x00036DFF, "vm_entry": 0x000011FF}
"""Control bits of the default1 class (SDM volume 3, appendix A.2)."""

_HIGH = 0xFFFF_FFFF


@dataclass(frozen=True)
class Capabilities:
    """Capability MSRs of a processor (SDM volume 3, appendix A): of each word the bits that must be 1, that may be 1.

    :param pin_based, primary, secondary, tertiary, vm_exit, vm_entry: (must, may) of the controls. By default no bit
        must be 1; :meth:`default1` is a processor without the "true" capability MSRs.
    :param vm_functions: IA32_VMX_VMFUNC. :param cr0, cr4: (must, may), IA32_VMX_CR0_FIXED0 and FIXED1, CR4 alike.
    :param ept_vpid: IA32_VMX_EPT_VPID_CAP. :param vmwrite_any: IA32_VMX_MISC bit 29, VMWRITE reaches exit information.
    :param maxphyaddr: physical-address width M, 32..52.
    :raises StateError: a mask with bits that must be 1 and may not, or a width that no processor has.
    """

    pin_based: tuple[int, int] = (0, 0xEB | DEFAULT1["pin_based"])
    primary: tuple[int, int] = (0, 0xFBFFFF8C | DEFAULT1["primary"])
    secondary: tuple[int, int] = (0, 0x0FFFFFFF)
    tertiary: tuple[int, int] = (0, 0x1F)
    vm_exit: tuple[int, int] = (0, 0x003C8204 | DEFAULT1["vm_exit"])
    vm_entry: tuple[int, int] = (0, 0x0000C204 | DEFAULT1["vm_entry"])
    vm_functions: int = 1
    cr0: tuple[int, int] = (0x80000021, _HIGH)
    cr4: tuple[int, int] = (1 << 13, 0x01F73FFF)
    ept_vpid: int = 0x00000F01067341C1
    vmwrite_any: bool = False
    maxphyaddr: int = 52

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("pin_based", "primary", "secondary", "tertiary", "vm_exit", "vm_entry", "cr0", "cr4"):
            must, may = getattr(self, name)
            if not 0 <= must <= may | must < 1 << (64 if name == "tertiary" else 32) or must & ~may:
                raise StateError(
                    f"{name}=({must:#x}, {may:#x}): give (must, may), bits that must be 1 being among those that may"
                )
        if not 32 <= self.maxphyaddr <= 52:
            raise StateError(f"maxphyaddr={self.maxphyaddr} is outside 32..52")
        if not 0 <= self.ept_vpid < 1 << 64 or not 0 <= self.vm_functions < 1 << 32:
            raise StateError(f"ept_vpid={self.ept_vpid:#x}, vm_functions={self.vm_functions:#x}: 64 and 32 bits")

    @classmethod
    def default1(cls) -> Capabilities:
        """A processor on which the controls of the default1 class must be 1."""
        plain = cls()
        words = {name: (bits, getattr(plain, name)[1]) for name, bits in DEFAULT1.items()}
        return replace(plain, **words)  # type: ignore[arg-type]
