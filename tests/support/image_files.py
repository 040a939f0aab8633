"""Files of memory images, written by the public descriptions of their formats: any memory in any of them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial

__all__ = [
    "WRITERS",
    "Memory",
    "avml",
    "dmp_bitmap",
    "dmp_full",
    "elf",
    "flattened",
    "kdump",
    "lime",
    "qemu_note",
    "vmem",
]

PAGE = 4096
Memory = Sequence[tuple[int, bytes]]
"""(physical address, bytes) of each range, ascending; whole pages for the formats of pages."""


# ---- ranges ----------------------------------------------------------------------------------------------------------


def lime(memory: Memory) -> bytes:
    return b"".join(
        struct.pack("<IIQQQ", 0x4C694D45, 1, start, start + len(data) - 1, 0) + data for start, data in memory
    )


def avml(memory: Memory) -> bytes:
    from cramjam import snappy

    out = b""
    for start, data in memory:
        stream = bytes(snappy.compress(data))
        out += struct.pack("<IIQQQ", 0x4C4D5641, 2, start, start + len(data) - 1, 0) + stream
        out += struct.pack("<Q", len(stream))
    return out


# ---- ELF -------------------------------------------------------------------------------------------------------------


def note(name: bytes, kind: int, content: bytes) -> bytes:
    named = name + b"\0"
    return (
        struct.pack("<III", len(named), len(content), kind)
        + named.ljust((len(named) + 3) // 4 * 4, b"\0")
        + content.ljust((len(content) + 3) // 4 * 4, b"\0")
    )


def qemu_note(cr0: int, cr3: int, cr4: int, *, long: bool = True, kernel_gs: int = 0) -> bytes:
    """QEMU's note of one CPU."""
    content = bytearray(struct.pack("<II", 1, 440)).ljust(440, b"\0")
    struct.pack_into("<I", content, 160, (0xAF9A00 if long else 0xCF9A00))
    struct.pack_into("<5Q", content, 392, cr0, 0, 0, cr3, cr4)
    struct.pack_into("<Q", content, 432, kernel_gs)
    return note(b"QEMU", 0, bytes(content))


def elf(
    memory: Memory, notes: bytes = b"", *, zeros: Sequence[tuple[int, int]] = (), pad: int = 0, many: bool = False,
    machine: int = 62, paddr: Callable[[int], int] = lambda start: start,
) -> bytes:  # fmt: skip
    """`zeros`: (address, bytes) of segments without bytes in the file; `pad`: bytes in front of each segment's;
    `many`: the number of program headers stands in section header 0."""
    loads = [(start, data, len(data)) for start, data in memory] + [(start, b"", n) for start, n in zeros]
    count = 1 + len(loads)
    phoff = 64 + 64 * many
    at = phoff + 56 * count
    rows = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), len(notes), 0)
    body = notes
    for start, data, size in loads:
        body += bytes(pad)
        rows += struct.pack("<IIQQQQQQ", 1, 7, at + len(body), start, paddr(start), len(data), size, PAGE)
        body += data
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 4, machine, 1, 0, phoff, 64 if many else 0, 0, 64, 56, 0xFFFF if many else count,
        64 if many else 0, 1 if many else 0, 0,
    )  # fmt: skip
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0) if many else b""
    return head + section + rows + body


# ---- kdump -----------------------------------------------------------------------------------------------------------


def _packed(page: bytes, method: str) -> tuple[int, bytes]:
    if method == "zlib":
        return 1, zlib.compress(page)
    if method == "lzo":
        from lzallright import LZOCompressor

        return 2, LZOCompressor().compress(page)
    if method == "snappy":
        from cramjam import snappy

        return 4, bytes(snappy.compress_raw(page))
    if method == "zstd":
        import zstandard

        return 0x20, zstandard.ZstdCompressor().compress(page)
    return 0, page


def _bitmap(pages: Iterable[int], nbytes: int) -> bytes:
    bits = bytearray(nbytes)
    for number in pages:
        bits[number >> 3] |= 1 << (number & 7)
    return bytes(bits)


def kdump(
    memory: Memory, *, method: str = "zlib", level: int = 1, notes: bytes = b"", vmcoreinfo: bytes = b"",
    left_out: Callable[[int], bool] = lambda number: False, split: tuple[int, int] | None = None, version: int = 6,
) -> bytes:  # fmt: skip
    """`left_out`: pages that memory has and the dump has not; `split`: pages first..behind-1 alone have descriptors."""
    pages = {(start + at) // PAGE: data[at : at + PAGE] for start, data in memory for at in range(0, len(data), PAGE)}
    mapnr = max(pages) + 1
    blocks = -(-mapnr // (8 * PAGE))
    given = [number for number in sorted(pages) if not left_out(number)]
    sub_blocks = 1 + -(-(len(notes) + len(vmcoreinfo)) // PAGE)
    head = bytearray(PAGE)
    struct.pack_into("<8si", head, 0, b"KDUMP   ", version)
    struct.pack_into("<IiiII", head, 424, 1, PAGE, sub_blocks, 2 * blocks, min(mapnr, 0xFFFFFFFF))
    struct.pack_into("<i", head, 460, 1)
    sub = bytearray(sub_blocks * PAGE)
    first, behind = split or (0, 0)
    place = PAGE + 104
    struct.pack_into("<QIIQQ", sub, 0, 0, level, int(split is not None), first, behind)
    struct.pack_into("<QQQQ", sub, 32, place + len(notes), len(vmcoreinfo), place if notes else 0, len(notes))
    struct.pack_into("<QQQ", sub, 80, first, behind, mapnr)
    sub[104 : 104 + len(notes) + len(vmcoreinfo)] = notes + vmcoreinfo
    del sub[sub_blocks * PAGE :]
    bitmaps = _bitmap(pages, blocks * PAGE) + _bitmap(given, blocks * PAGE)
    written = [number for number in given if split is None or first <= number < behind]
    at = len(head) + len(sub) + len(bitmaps) + 24 * len(written)
    rows, body = bytearray(), bytearray()  # bytes would be copied at each page
    for number in written:
        flags, data = _packed(pages[number], method)
        if len(data) >= PAGE:
            flags, data = 0, pages[number]
        rows += struct.pack("<QIIQ", at + len(body), len(data), flags, 0)
        body += data
    return bytes(head) + bytes(sub) + bitmaps + bytes(rows + body)


def flattened(file: bytes, *, size: int = 5000) -> bytes:
    """A file as makedumpfile -F writes it: pieces, the first of which comes once more at the end."""
    out = bytearray((b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(4096, b"\0"))
    for at in [*range(0, len(file), size), 0]:
        piece = file[at : at + size] if at or len(out) > 4096 else bytes(min(size, len(file)))
        out += struct.pack(">qq", at, len(piece)) + piece
    return bytes(out + struct.pack(">qq", -1, -1))


# ---- Windows and VMware ----------------------------------------------------------------------------------------------


def _dmp_head(cr3: int, kind: int) -> bytearray:
    head = bytearray(0x2000)
    struct.pack_into("<8sIIQ", head, 0, b"PAGEDU64", 15, 19041, cr3)
    struct.pack_into("<I", head, 0x30, 0x8664)
    struct.pack_into("<I", head, 0xF98, kind)
    return head


def dmp_full(memory: Memory, cr3: int = 0) -> bytes:
    head = _dmp_head(cr3, 1)
    struct.pack_into("<I4xQ", head, 0x88, len(memory), sum(len(data) for _, data in memory) // PAGE)
    for i, (start, data) in enumerate(memory):
        struct.pack_into("<QQ", head, 0x98 + 16 * i, start // PAGE, len(data) // PAGE)
    return bytes(head) + b"".join(data for _, data in memory)


def dmp_bitmap(memory: Memory, cr3: int = 0) -> bytes:
    pages = [(start + at) // PAGE for start, data in memory for at in range(0, len(data), PAGE)]
    bits = max(pages) + 1
    bitmap = _bitmap(pages, (bits + 7) // 8)
    first = (0x2038 + len(bitmap) + PAGE - 1) // PAGE * PAGE
    head = bytes(_dmp_head(cr3, 5)) + b"SDMPDUMP".ljust(0x20, b"\0") + struct.pack("<QQQ", first, len(pages), bits)
    return (head + bitmap).ljust(first, b"\0") + b"".join(data for _, data in memory)


def vmem(memory: Memory, *, magic: bytes = b"\xd2\xbe\xd2\xbe") -> tuple[bytes, bytes]:
    """(.vmem, .vmss)."""

    def tag(name: bytes, value: int, *indices: int) -> bytes:
        return (
            bytes([len(indices) << 6 | 4, len(name)])
            + name
            + struct.pack(f"<{len(indices)}I", *indices)
            + struct.pack("<I", value)
        )

    wide = 4 if magic[0] & 15 == 0 else 8
    long = bytes([62, 4]) + b"blob" + (7).to_bytes(wide, "little") * 2 + bytes(2) + b"content"
    tags = long + tag(b"regionsCount", len(memory))
    at = 0
    for i, (start, data) in enumerate(memory):
        tags += tag(b"regionPPN", start // PAGE, i) + tag(b"regionPageNum", at // PAGE, i)
        tags += tag(b"regionSize", len(data) // PAGE, i)
        at += len(data)
    groups = [(b"Checkpoint", 0), (b"memory", 12 + 80 * 2)]
    head = magic + struct.pack("<II", 8, 2) + b"".join(struct.pack("<64sQQ", name, at, 0) for name, at in groups)
    return b"".join(data for _, data in memory), head + tags + bytes(2)


WRITERS: dict[str, Callable[[Memory], bytes]] = {
    "elf": elf,
    "elf, many headers": lambda memory: elf(memory, pad=3, many=True),
    "lime": lime,
    "lime, zlib": lambda memory: zlib.compress(lime(memory)),
    "avml": avml,
    **{f"kdump, {method}": partial(kdump, method=method)
       for method in ("plain", "zlib", "lzo", "snappy", "zstd")},
    "kdump, flattened": lambda memory: flattened(kdump(memory)),
    "dmp, full": dmp_full,
    "dmp, bitmap": dmp_bitmap,
}  # fmt: skip
"""By format; memory is of whole pages."""
