"""LiME and AVML: ranges of physical memory one behind the other, each with a header in front."""

from __future__ import annotations

from array import array
from bisect import bisect_right

from fastmmu.errors import MissingExtraError
from fastmmu.image.layout import FETCHED, PAGE, TOP, Layout
from fastmmu.image.source import Cache, Source

__all__ = ["read"]

LIME, AVML = 0x4C694D45, 0x4C4D5641
_IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"
_MOST_CHUNK = 1 << 16  # bytes unpacked: the framing format has no larger ones


def read(source: Source) -> Layout:
    """Ranges with headers `<IIQQQ`: magic, version, start, end (included), reserved. The bytes follow, in AVML's
    version 2 as a snappy framed stream, and behind it how long it was."""
    layout = Layout()
    chunks = _Chunks(source)
    at = 0
    while at < source.size:
        magic, version, start, last, _ = source.fields("<IIQQQ", at)
        at += 32
        if magic not in (LIME, AVML) or version != (1 if magic == LIME else 2):
            raise source.wrong(
                f"at byte {at - 32}, where the header of a range should be, magic is {magic:#x}, version {version}"
            )
        if not start <= last < TOP:
            raise source.wrong(f"the range {start:#x}..{last:#x} in the header at byte {at - 32} is none")
        if magic == LIME:
            layout.add(start, last + 1 - start, at)
            at += last + 1 - start
        else:
            layout.add(start, last + 1 - start, FETCHED)
            source.need(at, source.size - at)
            behind = chunks.add(start, last + 1 - start, at)
            (length,) = source.fields("<Q", behind)
            if length != behind - at:
                raise source.wrong(f"the stream at byte {at} has {behind - at} bytes, and {length} by what follows it")
            at = behind + 8
    if chunks.pa:
        chunks.check()
        layout.fetch = chunks.page
    return layout


class _Chunks:
    """The chunks of all streams: physical address, bytes unpacked, place in the file, bytes there."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.pa, self.nbytes, self.place, self.packed = (array("Q") for _ in range(4))
        self.blocks = Cache(self.unpack)

    def add(self, pa: int, nbytes: int, at: int) -> int:
        """Those of a stream of `nbytes` at a byte of the file; returns where it ends."""
        data, size = self.source.data, self.source.size
        end = pa + nbytes
        while pa < end:
            if at + 4 > size:
                self.source.bytes_at(at, 4)
            kind, length = data[at], int.from_bytes(data[at + 1 : at + 4], "little")
            if at + 4 + length > size:
                self.source.bytes_at(at, 4 + length)
            if kind <= 1:
                n = length - 4 if kind else _raw_length(data[at + 8 : at + 4 + min(length, 9)])
                if not 0 < n <= min(_MOST_CHUNK, end - pa):
                    raise self.source.wrong(f"the snappy chunk at byte {at} has {n} bytes, {end - pa} are left")
                self.pa.append(pa)
                self.nbytes.append(n)
                self.place.append(at)
                self.packed.append(4 + length)
                pa += n
            elif kind < 0x80:
                raise self.source.wrong(f"the snappy chunk at byte {at} is of type {kind:#x}, which is none")
            at += 4 + length
        return at

    def check(self) -> None:
        """In the order of addresses, so that a page is found."""
        order = sorted(range(len(self.pa)), key=self.pa.__getitem__)
        for column in (self.pa, self.nbytes, self.place, self.packed):
            column[:] = array("Q", (column[i] for i in order))
        for i in range(1, len(order)):
            if self.pa[i - 1] + self.nbytes[i - 1] > self.pa[i]:
                raise self.source.wrong(f"two of its ranges hold physical address {self.pa[i]:#x}")

    def unpack(self, number: int) -> bytes:
        """A chunk; the library looks at its checksum."""
        try:
            from cramjam import DecompressionError, snappy
        except ImportError as error:
            raise MissingExtraError("an AVML image", "images") from error
        at = self.place[number]
        try:
            block = bytes(snappy.decompress(_IDENTIFIER + self.source.bytes_at(at, self.packed[number])))
        except DecompressionError as error:
            raise self.source.wrong(f"the snappy chunk at byte {at} cannot be unpacked: {error}") from error
        if len(block) != self.nbytes[number]:
            raise self.source.wrong(f"the snappy chunk at byte {at} has {len(block)} bytes, not {self.nbytes[number]}")
        return block

    def page(self, at: int) -> bytes:
        """A page, zero where no chunk has any of it."""
        page = bytearray(PAGE)
        i = max(0, bisect_right(self.pa, at) - 1)
        while i < len(self.pa) and self.pa[i] < at + PAGE:
            first, last = max(at, self.pa[i]), min(at + PAGE, self.pa[i] + self.nbytes[i])
            if first < last:
                page[first - at : last - at] = self.blocks[i][first - self.pa[i] : last - self.pa[i]]
            i += 1
        return bytes(page)


def _raw_length(head: memoryview) -> int:
    # bytes unpacked, a number in groups of 7 bits
    n = shift = 0
    for byte in head:
        n |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return n
    return 0
