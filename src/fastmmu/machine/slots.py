"""Guest-physical memory beside the machine's own."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["MemorySlot"]


class MemorySlot(NamedTuple):
    """One slot of guest-physical memory (KVM's kvm_memory_slot; kvm_policy.md §0); an access to no slot is MMIO.

    gpa, size: bytes, multiples of 4096. readonly: the guest's writes go to the device model. host: as
    ``Config.host_pages``. private: the VMM's own, like the APIC-access page. device: the pages are a device's, given to
    the guest: EPT maps them uncacheable, and the guest's PAT may make them write-combining (KVM's vmx_get_mt_mask;
    kvm_policy.md §7). emulated: private, and never mapped: every access is emulated, like those of the APIC-access page
    while APICv is off (kvm_policy.md §14).
    """

    gpa: int
    size: int
    readonly: bool = False
    host: Literal["4k", "2m", "untouched"] = "4k"
    private: bool = False
    device: bool = False
    emulated: bool = False
