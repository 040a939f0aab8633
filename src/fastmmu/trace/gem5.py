"""gem5's packet traces (CommMonitor): "gem5", a header message, then a message a packet, each behind its length.

Read requests are reads, or fetches where the flag says so, write requests are writes; responses and other commands are
left out and counted. An access of more than 255 bytes becomes several. Addresses are taken for linear ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastmmu.errors import TraceError
from fastmmu.trace.events import Batch, empty_batch
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.gem5_parse_py import PacketStream
from fastmmu.trace.source import ByteSource

__all__ = ["READER", "Gem5Trace", "looks_like"]

_MAGIC = b"gem5"
_BUFFER = 1 << 18  # bytes; more than a message has
_FAULTS = {
    -1: "a length of more than 64 bits",
    -2: "a message of more than 64 KiB",
    -3: "a message whose fields do not end where it does",
    -4: "a message that is no packet: no command, no address, or too large an access",
}


def looks_like(head: bytes) -> bool:
    """Whether a file begins as a packet trace."""
    return head.startswith(_MAGIC)


class Gem5Trace(FileTrace):
    """Packets, parsed by the kernel layer."""

    format = "gem5"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._others = 0

    def notes(self) -> list[str]:
        said = ["packets' addresses are taken for linear ones; behind an MMU they are physical"]
        if self._others:
            said.append(f"left out {self._others:,} packets that are neither read nor write requests")
        return said

    def _decode(self, source: ByteSource, chunk: int) -> Iterator[Batch]:
        packets = PacketStream()
        view = memoryview(bytearray(_BUFFER))
        self._header(source)
        base = source.offset
        start, stop = 0, source.fill(view)
        batch = empty_batch(chunk)
        n = 0
        while True:
            start, n, fault = packets.parse(view, start, stop, batch.op, batch.size, batch.addr, n)
            self._others = packets.others
            if fault:
                raise TraceError(_FAULTS[fault], path=self.path, where=f"byte {base + start}")
            if n == chunk:
                yield batch
                batch = empty_batch(chunk)
                n = 0
                continue
            rest = stop - start
            view[:rest] = view[start:stop]
            base += start
            start, stop = 0, rest + source.fill(view[rest:])
            if stop == rest:
                break
        if rest:
            raise TraceError("the file ends within a message: it was cut short", path=self.path, where=f"byte {base}")
        if n:
            yield batch[:n]

    def _header(self, source: ByteSource) -> None:
        """Pass over the magic number and the header."""
        if source.read(4) != _MAGIC:
            raise TraceError("not a packet trace of gem5", path=self.path, where="byte 0")
        length = shift = 0
        while byte := source.read(1):
            length |= (byte[0] & 0x7F) << shift
            shift += 7
            if not byte[0] & 0x80 or shift > 21:
                break
        if not byte or length > _BUFFER or len(source.read(length)) < length:
            raise TraceError("the header of the packet trace is malformed", path=self.path, where="byte 4")


READER = Gem5Trace
