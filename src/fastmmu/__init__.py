"""Simulator of x86 memory virtualization: guest paging, EPT, shadow page tables, tagged TLBs, VM exits."""

from __future__ import annotations

__version__ = "0.1.0"
