"""CloudSuite's form of ChampSim's instruction records: 96 bytes each, little-endian, no header.

    byte  0  ip                     8   is_branch, branch_taken      10  destination registers 4 x u8
         14  source registers 4 x u8                                 18  padding 6
         24  destination_memory 4 x u64                              56  source_memory 4 x u64
         88  asid 2 x u8, padding 6

Otherwise as in `champsim`.
"""

from __future__ import annotations

from fastmmu.trace.champsim import CLOUDSUITE, RecordTrace, begins

__all__ = ["READER", "CloudsuiteTrace", "looks_like"]


def looks_like(head: bytes) -> bool:
    """Whether the first bytes of a file can be such records."""
    return begins(CLOUDSUITE, head)


class CloudsuiteTrace(RecordTrace):
    """CloudSuite's records."""

    format = "cloudsuite"
    layout = CLOUDSUITE


READER = CloudsuiteTrace
