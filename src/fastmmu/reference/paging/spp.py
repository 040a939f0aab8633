"""Sub-page write permissions: the table of one permission bit per 128 bytes (ept.md §10)."""

from __future__ import annotations

from ...dtypes import StepKind
from .outcome import SppEvent
from .run import Ended, Run
from .state import bits

__all__ = ["sub_page_writable"]

MISS = 1 << 11  # qualification of exit 66: an invalid entry; 0 there: a reserved bit was set


def sub_page_writable(run: Run, spptp: int, gpa: int, gla: int | None, maxphyaddr: int) -> bool:
    """May the 128-byte sub-page of `gpa` be written? Invalid or malformed tables end the run as exit 66.

    L4..L2 entries: bit 0 valid, M-1:12 address, all else reserved. L1 entry: bit 2i for sub-page i, odd bits reserved.
    """
    frame = bits(maxphyaddr - 1, 12)
    table = spptp & frame
    for level in (4, 3, 2, 1):
        hpa = table + 8 * (gpa >> (12 + 9 * (level - 1)) & 0x1FF)
        entry = run.read(hpa, 8, gpa=gpa, kind=StepKind.SPP, level=level, guest_level=0)
        if level > 1:
            if not entry & 1:
                raise Ended(SppEvent(qualification=MISS, gpa=gpa, gla=gla))
            if entry & ~(frame | 1):
                raise Ended(SppEvent(qualification=0, gpa=gpa, gla=gla))
            table = entry & frame
    if entry & 0xAAAA_AAAA_AAAA_AAAA:
        raise Ended(SppEvent(qualification=0, gpa=gpa, gla=gla))
    return bool(entry >> (2 * (gpa >> 7 & 0x1F)) & 1)
