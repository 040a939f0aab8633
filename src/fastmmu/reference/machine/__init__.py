"""The guest kernel under traces of programs, on several vCPUs.

    guest_kernel    frames, page tables, what each event makes of an address space
    shootdown       which vCPUs flush, when, and by whom they are told

A :class:`Guest` of both says what every access reaches and every counter has, whatever the scheme. It has no TLB: that
nothing stale is used is what it says.
"""

from __future__ import annotations

from .guest_kernel import Flush, Frames, Guest, Pages
from .shootdown import Cpus

__all__ = ["Cpus", "Flush", "Frames", "Guest", "Pages"]
