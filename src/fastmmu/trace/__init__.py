"""Traces: files in, batches of events out.

    file ── ByteSource ── reader (lackey, champsim, npy, arrow) ── combinators ── Batch(op, size, addr) ── simulator
            decompresses   one file each                            data_only, head, interleave, exits_every

Everything streams: memory does not grow with the length of a trace.
"""

from __future__ import annotations

from fastmmu.trace.base import Trace
from fastmmu.trace.bundle import bundled
from fastmmu.trace.combine import exits_every, interleave
from fastmmu.trace.events import CHUNK, EVENT_DTYPE, Batch
from fastmmu.trace.read import FORMATS, read_trace
from fastmmu.trace.tpr import TprProfile, tpr_profile, with_tpr
from fastmmu.trace.write import write_trace

__all__ = [
    "CHUNK",
    "EVENT_DTYPE",
    "FORMATS",
    "Batch",
    "TprProfile",
    "Trace",
    "bundled",
    "exits_every",
    "interleave",
    "read_trace",
    "tpr_profile",
    "with_tpr",
    "write_trace",
]
