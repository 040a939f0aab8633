"""Packed files of several blocks, each of which can be unpacked alone, by the descriptions of their formats."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Sequence

__all__ = ["IN_BLOCKS", "bgzf", "snappy_chunks", "xz_blocks", "xz_streams", "zstd_frames"]


def _vli(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def xz_blocks(parts: Sequence[bytes]) -> bytes:
    """One stream of a block each, as `xz -T0 --block-size` writes."""
    body, records = b"", b""
    head = lzma.compress(b"", preset=0)[:12]
    for part in parts:
        stream = lzma.compress(part, preset=0)
        index = len(stream) - 12 - 4 * (struct.unpack("<I", stream[-8:-4])[0] + 1)
        block = stream[12:index]
        size = next(n for n in range(len(block) - 3, len(block) + 1) if _vli(n) in stream[index + 2 : -12])
        body += block
        records += _vli(size) + _vli(len(part))
    index_ = b"\0" + _vli(len(parts)) + records
    index_ += bytes(-len(index_) % 4)
    index_ += struct.pack("<I", zlib.crc32(index_))
    tail = struct.pack("<I", len(index_) // 4 - 1) + head[6:8]
    return head + body + index_ + struct.pack("<I", zlib.crc32(tail)) + tail + b"YZ"


def xz_streams(parts: Sequence[bytes]) -> bytes:
    """A stream each, padding between them, of different checks."""
    checks = (lzma.CHECK_CRC64, lzma.CHECK_CRC32, lzma.CHECK_SHA256, lzma.CHECK_NONE)
    return b"".join(
        lzma.compress(part, check=checks[i % 4], preset=0) + bytes(4 * (i % 3)) for i, part in enumerate(parts)
    )


def zstd_frames(parts: Sequence[bytes]) -> bytes:
    """A frame each, every other with a checksum, and one that is to be skipped."""
    import zstandard

    frames = [zstandard.ZstdCompressor(write_checksum=bool(i & 1)).compress(part) for i, part in enumerate(parts)]
    return frames[0] + struct.pack("<II", 0x184D2A53, 5) + b"hello" + b"".join(frames[1:])


def bgzf(parts: Sequence[bytes]) -> bytes:
    """Members of at most 65,280 bytes, as bgzip writes, and its empty one at the end."""
    out = b""
    data = b"".join(parts)
    for part in [*(data[at : at + 65280] for at in range(0, len(data), 65280)), b""]:
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        body = packer.compress(part) + packer.flush()
        out += b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\6\0BC\2\0" + struct.pack("<H", len(body) + 25)
        out += body + struct.pack("<II", zlib.crc32(part), len(part))
    return out


def snappy_chunks(parts: Sequence[bytes]) -> bytes:
    """Frames of chunks, the head once more in the middle."""
    from cramjam import snappy

    return b"".join(bytes(snappy.compress(part)) for part in parts)


IN_BLOCKS: dict[str, Callable[[Sequence[bytes]], bytes]] = {
    "xz, blocks": xz_blocks,
    "xz, streams": xz_streams,
    "zst": zstd_frames,
    "gz": bgzf,
    "sz": snappy_chunks,
}
"""By name."""
