"""Windows crash dumps of x64: complete ones, and those with a bitmap of the pages."""

from __future__ import annotations

import numpy as np

from fastmmu.image.layout import PAGE, Layout
from fastmmu.image.source import Source

__all__ = ["bits_of", "read", "runs_of"]

PAGES = 0x2000
AMD64 = 0x8664
_MOST_RUNS = 0x2B  # that fit between the runs' place and what follows them
_KINDS = {2: "a kernel dump", 3: "a dump of the header alone", 4: "a small dump (minidump)", 6: "a live kernel dump",
          8: "a kernel dump", 9: "a kernel and user dump", 10: "a complete dump of live memory"}  # fmt: skip
_PIECE = 1 << 20
_REMEDY = "in Windows, choose a complete memory dump, or take one with WinDbg: .dump /f"


def read(source: Source) -> Layout:
    """Pages from byte 2000H on: run after run, or those whose bit is set. CR3 is DirectoryTableBase."""
    (root,) = source.fields("<Q", 0x10)
    (machine,) = source.fields("<I", 0x30)
    (kind,) = source.fields("<I", 0xF98)
    if machine != AMD64:
        raise source.wrong(f"the dump of a machine of type {machine:#x}, not of x64 ({AMD64:#x})")
    layout = Layout(cpus=[{"cr3": root}], info={"registers": "DirectoryTableBase"})
    if kind == 1:
        _full(source, layout)
    elif kind == 5:
        _bitmap(source, layout)
    else:
        raise source.wrong(f"{_KINDS.get(kind, f'a dump of type {kind}')}, which is not read; {_REMEDY}")
    return layout


def _full(source: Source, layout: Layout) -> None:
    count, pages = source.fields("<I4xQ", 0x88)
    if not 0 < count <= _MOST_RUNS:
        raise source.wrong(f"{count} runs of pages in the header; there are 1 to {_MOST_RUNS}")
    at, total = PAGES, 0
    for i in range(count):
        first, number = source.fields("<QQ", 0x98 + 16 * i)
        layout.add(first * PAGE, number * PAGE, at)
        at += number * PAGE
        total += number
    if total != pages:
        raise source.wrong(f"its runs have {total} pages, and {pages} by the header")


def _bitmap(source: Source, layout: Layout) -> None:
    signature, valid = source.fields("<4s4s", PAGES)
    if signature not in (b"SDMP", b"FDMP") or valid != b"DUMP":
        raise source.wrong(f"at byte {PAGES:#x} stands {(signature + valid)!r}, not SDMPDUMP or FDMPDUMP")
    at, present, pages = source.fields("<QQQ", PAGES + 0x20)
    bitmap = source.bytes_at(PAGES + 0x38, (pages + 7) // 8)
    total = bits_of(bitmap, pages)
    if total != present:
        raise source.wrong(f"its bitmap has {total} pages, and {present} by the header")
    if at + total * PAGE > source.size:
        raise source.wrong(f"is cut short: {total} pages at byte {at} are part of it, and it has {source.size} bytes")
    found = runs_of(bitmap, pages)
    for first, number in found:
        layout.add(first * PAGE, number * PAGE, at)
        at += number * PAGE


def bits_of(bitmap: bytes, nbits: int, first: int = 0) -> int:
    """How many of the bits first..nbits-1 are set. A run may be of one bit: ask for this before :func:`runs_of`."""
    bits = int.from_bytes(bitmap, "little")
    return ((bits & ((1 << nbits) - 1)) >> first).bit_count() if first < nbits else 0


def runs_of(bitmap: bytes, nbits: int, first: int = 0) -> list[tuple[int, int]]:
    """(number, count) of bits in a row, of the bits first..nbits-1; bit 0 is the lowest of byte 0."""
    edges: list[int] = []
    last = 0
    for at in range(0, len(bitmap), _PIECE):
        bits = np.unpackbits(np.frombuffer(bitmap[at : at + _PIECE], np.uint8), bitorder="little").view(np.int8)
        bits[: max(0, first - 8 * at)] = 0
        bits[max(0, nbits - 8 * at) :] = 0
        edges += (np.flatnonzero(np.diff(bits, prepend=np.int8(last))) + 8 * at).tolist()
        last = int(bits[-1])
    if last:
        edges.append(8 * len(bitmap))
    return [(start, stop - start) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
