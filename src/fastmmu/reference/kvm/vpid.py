"""Executable specification of KVM's VPID allocator (tlb.md §6): a bitmap, searched from its start."""

from __future__ import annotations

from ...errors import StateError

__all__ = ["VpidAllocator"]


class VpidAllocator:
    """Bit 0 belongs to the host."""

    def __init__(self) -> None:
        self.bitmap = bytearray(65536)
        self.bitmap[0] = 1

    def alloc(self) -> int:
        vpid = self.bitmap.find(0)
        if vpid < 0:
            return 0
        self.bitmap[vpid] = 1
        return vpid

    def free(self, vpid: int) -> None:
        if vpid == 0:
            return
        if vpid >= 65536 or not self.bitmap[vpid]:
            raise StateError(f"VPID {vpid} is not given out")
        self.bitmap[vpid] = 0

    def __len__(self) -> int:
        return sum(self.bitmap) - 1

    def __contains__(self, vpid: int) -> bool:
        return 0 <= vpid < 65536 and bool(self.bitmap[vpid])
