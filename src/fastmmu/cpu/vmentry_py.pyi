from collections.abc import Sequence
from typing import NamedTuple

from fastmmu.paging.memory import PhysicalMemory

class Entry(NamedTuple):
    error: int
    failed: tuple[str, ...]
    reason: int | None
    qualification: int
    vppr: int
    pending: bool

def vm_entry(
    *,
    vtpr: int = 0,
    maxphyaddr: int = 52,
    walk5: bool = True,
    memory: PhysicalMemory | None = None,
    guest_cr0: int = 0x80000021,
    guest_cr3: int = 0,
    guest_cr4: int = 0x2020,
    guest_efer: int = 0,
    guest_pat: int = 0x0007040600070406,
    guest_rflags: int = 2,
    guest_pdpte: Sequence[int] = (0, 0, 0, 0),
    **fields: int,
) -> Entry: ...
