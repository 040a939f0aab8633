"""The guest kernel under traces of programs, on several vCPUs.

    frames          which frames programs get, by policy; the buddy allocator
    guest_kernel    frames, page tables, what each event makes of an address space
    compaction      pages that move so that 2 MB are free
    thp             which areas may have huge pages; where khugepaged looks
    shootdown       which vCPUs flush, when, and by whom they are told

A :class:`Guest` of both says what every access reaches and every counter has, whatever the scheme. It has no TLB: that
nothing stale is used is what it says.
"""

from __future__ import annotations

from .compaction import Compaction
from .frames import Buddy, PolicyFrames, permutation
from .guest_kernel import Flush, Frames, Guest, Pages
from .shootdown import Cpus
from .thp import Thp

__all__ = ["Buddy", "Compaction", "Cpus", "Flush", "Frames", "Guest", "Pages", "PolicyFrames", "Thp", "permutation"]
