"""Traces, compressions and comparisons for the tests of trace files."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import sys
import zipfile
from collections.abc import Callable

import numpy as np
import pytest

from fastmmu.ops import Op
from fastmmu.trace import Batch, Trace
from fastmmu.trace.events import concatenate

if sys.version_info >= (3, 14):
    from compression.zstd import compress as zst
else:
    zstandard = pytest.importorskip("zstandard", reason="skipped: the extra zstd is not installed")

    def zst(data: bytes) -> bytes:
        return zstandard.ZstdCompressor().compress(data)


try:  # the extra traces
    import lz4.frame
except ImportError:
    lz4 = None
try:
    import cramjam
except ImportError:
    cramjam = None


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(0, len(data), 100_000):
            archive.writestr(f"chunk.{n // 100_000:04}", data[n : n + 100_000])
    return out.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, 1),
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": zst,
    ".bz2": lambda data: bz2.compress(data, 1),
    ".lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=0),
    ".zip": zipped,
}
if lz4 is not None:
    COMPRESS[".lz4"] = lambda data: lz4.frame.compress(data, content_checksum=True, block_linked=True)
if cramjam is not None:
    COMPRESS[".sz"] = lambda data: bytes(cramjam.snappy.compress(data))


def sample(n: int, system: bool) -> Trace:
    rng = np.random.default_rng(n)
    ops = [Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH]
    op = rng.choice(np.array(ops + [Op.SWITCH, Op.INVLPG, Op.UNMAP] * system, np.uint8), n)
    addr = rng.integers(0, 2**64, n, dtype=np.uint64) >> rng.integers(0, 40, n).astype(np.uint64)
    return Trace.from_arrays(addr, op, rng.integers(1, 256, n).astype(np.uint8))


def events(trace: Trace, chunk: int = 1 << 18) -> Batch:
    batches = list(trace.batches(chunk))
    assert all(1 <= len(batch) <= chunk for batch in batches)
    for batch in batches:
        for column, dtype in ((batch.op, np.uint8), (batch.size, np.uint8), (batch.addr, np.uint64)):
            assert column.dtype == dtype
            assert column.shape == (len(batch),)
            assert column.flags.c_contiguous
    return concatenate(batches)


def assert_same(left: Batch, right: Batch) -> None:
    np.testing.assert_array_equal(left.op, right.op)
    np.testing.assert_array_equal(left.size, right.size)
    np.testing.assert_array_equal(left.addr, right.addr)


def record(ip: int, sources: list[int], destinations: list[int], branch: int = 0) -> bytes:
    sources, destinations = sources + [0] * (4 - len(sources)), destinations + [0] * (2 - len(destinations))
    return struct.pack("<Q2B2B4B2Q4Q", ip, branch, branch, 1, 2, 3, 4, 5, 6, *destinations, *sources)


def cloudsuite(ip: int, sources: list[int], destinations: list[int], branch: int = 0) -> bytes:
    """A record of CloudSuite's form."""
    sources, destinations = sources + [0] * (4 - len(sources)), destinations + [0] * (4 - len(destinations))
    return struct.pack("<Q2B8B6x8Q2B6x", ip, branch, branch, *[0, 0, 0, 7] * 2, *destinations, *sources, 1, 2)
