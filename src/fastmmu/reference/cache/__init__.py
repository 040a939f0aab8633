"""Data caches and memory, by host-physical address (caches.md).

sets        one cache: its sets, and which line makes room
frame_map   frames of the host, permuted
hierarchy   `Hierarchy`: where a reference is found, and what it moves
"""

from __future__ import annotations
