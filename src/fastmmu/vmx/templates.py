"""Fields with which a VM entry succeeds, to begin with: write them, then what is to be different."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .controls import Entry, Primary, Secondary, VmExit
from .fields import Field

__all__ = ["LONG_MODE_GUEST", "UNPAGED_GUEST"]

_COMMON = {
    Field.VM_EXIT_CONTROLS: VmExit.HOST_ADDRESS_SPACE_SIZE,
    Field.HOST_CR0: 0x80000031,  # PG, NE, ET, PE
    Field.HOST_CR4: 0x2020,  # VMXE, PAE
    Field.GUEST_RFLAGS: 1 << 1,
    Field.VMCS_LINK_POINTER: 0xFFFF_FFFF_FFFF_FFFF,
}

UNPAGED_GUEST: Mapping[Field, int] = MappingProxyType(
    _COMMON
    | {
        Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS,
        Field.SECONDARY_CONTROLS: Secondary.EPT | Secondary.UNRESTRICTED_GUEST,
        Field.GUEST_CR0: 0x31,
        Field.GUEST_CR4: 0x2000,
    }
)
"""A 32-bit guest without paging, over EPT: what is missing is EPTP."""

LONG_MODE_GUEST: Mapping[Field, int] = MappingProxyType(
    _COMMON
    | {
        Field.PRIMARY_CONTROLS: Primary.SECONDARY_CONTROLS,
        Field.VM_ENTRY_CONTROLS: Entry.IA32E_MODE_GUEST | Entry.LOAD_EFER,
        Field.GUEST_IA32_EFER: 0xD00,  # NXE, LMA, LME
        Field.GUEST_CR0: 0x80010031,  # PG, WP, NE, ET, PE
        Field.GUEST_CR4: 0x2020,
    }
)
"""A 64-bit guest with 4-level paging, without EPT: what is missing is GUEST_CR3."""
