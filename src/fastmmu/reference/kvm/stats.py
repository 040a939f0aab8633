"""Executable specification of KVM's own statistics (kvm_policy.md §12), by its names, where Linux 6.1 counts them.

A change of the tables that takes something away asks every vCPU for a flush: a request. A vCPU meets what was asked of
it before it enters the guest, and counts one flush of each kind then.
"""

from __future__ import annotations

from collections import Counter

from .tables import Leaf

__all__ = ["Stats", "loses"]

ALL, CURRENT, GUEST = "all", "current", "guest"


def loses(old: Leaf, new: Leaf, *, flags: bool) -> bool:
    """Does KVM flush for this change of a leaf? For W, also where it could be given back, and for A and D; without
    flags (of EPT) for what stands in their place."""
    if old.may_write and not new.writable:
        return True
    if flags:
        return (old.accessed and not new.accessed) or (old.dirty and not new.dirty)
    return (new.tracked and not old.tracked) or (old.writable and not new.writable)


class Stats:
    """What was counted, and the flushes that the vCPU owes before it enters the guest again."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.owed: set[str] = set()
        self.roots_gone = 0  # while in use: freed, and counted once more, at the next VM entry
        self.tables_early = 0  # made before the VM entry at which KVM makes them

    def request(self, wanted: bool = True) -> None:
        """A flush of every vCPU, this one among them."""
        if wanted:
            self.count["remote_tlb_flush_requests"] += 1
            self.owed.add(ALL)

    def owe(self, kind: str, wanted: bool = True) -> None:
        if wanted:
            self.owed.add(kind)

    def flush(self) -> None:
        """What is owed is done. A flush of all includes that of the current root."""
        if ALL in self.owed:
            self.owed.discard(CURRENT)
        self.count["tlb_flush"] += len(self.owed)
        self.owed.clear()

    def entered(self) -> None:
        """The guest ran again."""
        self.tables_early = 0
        self.count["mmu_shadow_zapped"] += self.roots_gone
        self.request(bool(self.roots_gone))
        self.roots_gone = 0
        self.flush()

    def emulated(self, gpa: int, *, mmio: bool) -> None:
        """The VMM decodes an instruction; user space carries out what accesses neither memory nor the APIC."""
        self.count["insn_emulation"] += 1
        self.count["mmio_exits"] += mmio and gpa >> 12 != 0xFEE00
