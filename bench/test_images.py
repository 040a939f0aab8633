"""Reading memory images: all of a file's memory, beside the decompressor alone; whole files, and their mappings."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

import fastmmu
from bench.race import Race, Rival, Scale, timed
from fastmmu.image import open_image
from tests.support.image_files import avml, kdump, lime
from tests.support.packed_files import xz_blocks, zstd_frames

for package in ("cramjam", "lzallright", "zstandard"):
    pytest.importorskip(package, reason=f"skipped: {package} is not installed")

PAGE = 4096
PIECE = 1 << 20

Images = Callable[[str], tuple[Path, int]]


def contents(pages: int) -> bytes:
    """Pages as kernels and programs have them: a third zero, words that are alike, some that do not pack."""
    rng = np.random.default_rng(1)
    data = np.zeros((pages, PAGE // 8), np.uint64)
    words = rng.integers(0, 1 << 14, (pages, PAGE // 8)).astype(np.uint64) | np.uint64(0xFFFF_8880_0000_0000)
    kind = rng.integers(0, 9, pages)
    data[kind > 2] = words[kind > 2]
    data[kind == 8] = rng.integers(0, 1 << 63, (int((kind == 8).sum()), PAGE // 8)).astype(np.uint64)
    return data.tobytes()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, scale: Scale) -> Images:
    """`images(name)`: a file, and the bytes of its memory."""
    where = tmp_path_factory.mktemp("images")
    data = contents(scale.of(200, 8_000, 32_000))
    memory = [(0, data[: len(data) // 2 & -PAGE]), (1 << 32, data[len(data) // 2 & -PAGE :])]
    makers: dict[str, Callable[[], bytes]] = {
        "raw": lambda: data,
        "lime": lambda: lime(memory),
        "lime.zlib": lambda: zlib.compress(lime(memory), 1),
        "avml": lambda: avml(memory),
        "lime.zst": lambda: zstd_frames([lime(memory)[at : at + 8 * PIECE] for at in range(0, len(data), 8 * PIECE)]),
        "lime.xz": lambda: xz_blocks([lime(memory)[at : at + 8 * PIECE] for at in range(0, len(data), 8 * PIECE)]),
        **{f"kdump.{method}": partial(kdump, memory, method=method) for method in ("zlib", "lzo", "snappy")},
    }

    @cache
    def make(name: str) -> tuple[Path, int]:
        (where / name).write_bytes(makers[name]())
        return where / name, len(data)

    return make


def all_of(path: Path) -> int:
    """Open a file and read all its memory; a sum of it."""
    memory = open_image(path).memory
    room = bytearray(PIECE)
    total = 0
    for start, end in memory.ranges.tolist():
        for at in range(start, end, PIECE):
            n = memory.read_into(at, memoryview(room)[: end - at])
            total += int(np.frombuffer(room, np.uint64, n // 8).sum(dtype=np.uint64))
    return total & (1 << 64) - 1


def summed(pieces: Callable[[], Iterable[bytes]]) -> Callable[[], float]:
    """The same sum over what the library alone gives."""

    def run() -> None:
        for piece in pieces():
            np.frombuffer(piece, np.uint8)[: len(piece) & -8].view(np.uint64).sum(dtype=np.uint64)

    return timed(run)


def kdump_alone(path: Path, method: str) -> Callable[[], Iterable[bytes]]:
    """The packed pages one after the other, in memory, and the library's function."""
    from cramjam import snappy
    from lzallright import LZOCompressor

    file = path.read_bytes()
    (sub_blocks, bitmap_blocks) = struct.unpack_from("<iI", file, 432)
    at = (1 + sub_blocks + bitmap_blocks) * PAGE
    bits = file[(1 + sub_blocks) * PAGE + bitmap_blocks // 2 * PAGE : at]
    count = int.from_bytes(bits, "little").bit_count()
    rows = [struct.unpack_from("<QII", file, at + 24 * i) for i in range(count)]
    pages = [(file[offset : offset + size], flags) for offset, size, flags in rows]
    unpack: dict[str, Callable[[bytes], bytes]] = {
        "zlib": zlib.decompress,
        "lzo": lambda data: bytes(LZOCompressor.decompress(data, PAGE)),
        "snappy": lambda data: bytes(snappy.decompress_raw(data)),
    }
    return lambda: (unpack[method](data) if flags else data for data, flags in pages)


def stream_alone(path: Path, name: str) -> Callable[[], Iterable[bytes]]:
    """The file through the decompressor, 1 MB at a time."""
    import lzma

    import zstandard
    from cramjam import snappy

    data = path.read_bytes()

    def zlib_pieces() -> Iterator[bytes]:
        stream = zlib.decompressobj()
        rest = data
        while rest:
            yield stream.decompress(rest, PIECE)
            rest = stream.unconsumed_tail

    def zst_pieces() -> Iterator[bytes]:
        stream = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
        while piece := stream.read(PIECE):
            yield piece

    def xz_pieces() -> Iterator[bytes]:
        import io

        with lzma.open(io.BytesIO(data)) as file:
            while piece := file.read(PIECE):
                yield piece

    def avml_pieces() -> Iterator[bytes]:
        at = 0
        while at < len(data):
            behind = data.find(b"AVML", at + 32)
            length = (behind if behind > 0 else len(data)) - 40 - at
            yield bytes(snappy.decompress(data[at + 32 : at + 32 + length]))
            at += length + 40

    return {"lime.zlib": zlib_pieces, "lime.zst": zst_pieces, "lime.xz": xz_pieces, "avml": avml_pieces}[name]


@pytest.mark.benchmark(group="reading images")
@pytest.mark.parametrize("method", ["zlib", "lzo", "snappy"])
def test_kdump(race: Race, images: Images, method: str) -> None:
    path, n = images(f"kdump.{method}")
    rivals = [Rival(f"{method} alone", summed(kdump_alone(path, method)), n)]
    assert race(lambda: all_of(path), n, rivals) == all_of(images("raw")[0])


@pytest.mark.benchmark(group="reading images")
@pytest.mark.parametrize("name", ["lime.zlib", "lime.zst", "lime.xz", "avml"])
def test_packed(race: Race, images: Images, name: str) -> None:
    path, n = images(name)
    rivals = [Rival("the decompressor alone", summed(stream_alone(path, name)), n)]
    assert race(lambda: all_of(path), n, rivals) == all_of(images("raw")[0])


@pytest.mark.benchmark(group="reading images")
@pytest.mark.parametrize("name", ["raw", "lime"])
def test_mapped(race: Race, images: Images, name: str) -> None:
    """Beside the same reads of the file."""
    path, n = images(name)

    def read() -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece

    assert race(lambda: all_of(path), n, [Rival("file.read", summed(read), n)]) == all_of(images("raw")[0])


@pytest.mark.benchmark(group="mappings of a sparse image")
@pytest.mark.parametrize("gigabytes", [1, 64])
def test_sparse(race: Race, gigabytes: int, tmp_path: Path) -> None:
    """A raw image of which tables for 2,560 pages are there: it is mapped, so its size costs nothing."""
    path = tmp_path / "memory.raw"
    size = gigabytes << 30
    with path.open("wb") as file:
        file.truncate(size)
        for at, words in sparse_tables(size).items():
            file.seek(at)
            file.write(np.array(words, np.uint64).tobytes())
    state = fastmmu.GuestState(cr3=0x1000)
    race(lambda: fastmmu.mappings(open_image(path).memory, state), 2560)
    assert len(fastmmu.mappings(open_image(path).memory, state)) == 2560


def sparse_tables(size: int) -> dict[int, list[int]]:
    """A root at 1000H, five page tables all over memory, which map 512 pages each."""
    step = size // 8
    found = {0x1000: [0x2003], 0x2000: [0x3003], 0x3000: [step * (i + 1) | 3 for i in range(5)]}
    return found | {step * (i + 1): [(step * (i + 2) + 4096 * j) | 0x63 for j in range(512)] for i in range(5)}
