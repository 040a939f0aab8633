"""gem5's packets; what they are: trace/gem5_parse.pyx."""

from __future__ import annotations

from collections.abc import Sequence

from fastmmu.ops import Op

__all__ = ["Packet", "events", "parts"]

Packet = dict[int, int]
"""Number of a field and its value."""

COMMAND, ADDRESS, SIZE, FLAGS = 2, 3, 4, 5
READ_REQUEST, WRITE_REQUEST = 1, 4
INST_FETCH = 0x100


def events(packets: Sequence[Packet]) -> list[tuple[int, int, int]]:
    """The events of packets: of read and write requests."""
    found = []
    for packet in packets:
        if packet[COMMAND] in (READ_REQUEST, WRITE_REQUEST):
            fetch = packet.get(FLAGS, 0) & INST_FETCH
            op = Op.WRITE if packet[COMMAND] == WRITE_REQUEST else Op.FETCH if fetch else Op.READ
            found += parts(int(op), packet.get(SIZE, 0), packet[ADDRESS])
    return found


def parts(op: int, size: int, addr: int) -> list[tuple[int, int, int]]:
    """The events of one access: of more than 255 bytes several, of 128 but for the last."""
    if size <= 255:
        return [(op, size, addr)]
    return [(op, min(128, size - at), addr + at) for at in range(0, size, 128)]
