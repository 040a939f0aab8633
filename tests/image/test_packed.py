"""Packed files of several blocks: what is looked at is unpacked, once, and nothing else."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastmmu
from fastmmu.image import open_image
from fastmmu.image.packed import blocks_of
from fastmmu.image.source import open_source
from tests.support.image_files import PAGE, WRITERS, lime
from tests.support.packed_files import IN_BLOCKS, xz_blocks, zstd_frames

cramjam = pytest.importorskip("cramjam", reason="skipped: cramjam of the extra 'images' is not installed")
zstandard = pytest.importorskip("zstandard", reason="skipped: zstandard of the extra 'zstd' is not installed")

PART = 3 << 18
CODEC = {"xz, blocks": "xz", "xz, streams": "xz"}


def some_parts(rng: random.Random, n: int) -> list[bytes]:
    """Some that are zero, some that pack well, some that do not."""
    kinds = (lambda: bytes(PART), lambda: rng.randbytes(64) * (PART // 64), lambda: rng.randbytes(PART))
    return [rng.choice(kinds)() for _ in range(n)]


def save(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "image"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_what_is_looked_at_is_unpacked_once(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    parts = some_parts(rng, 12)
    whole = b"".join(parts)
    source = open_source(save(tmp_path, IN_BLOCKS[name](parts)))
    assert source.filled is not None
    assert source.size == len(whole)
    before = source.filled.unpacked
    assert before <= len(whole) / 5, "the head alone"
    assert source.bytes_at(5 * PART + 100, 50) == parts[5][100:150]
    assert 0 < source.filled.unpacked - before <= PART + (1 << 20)
    assert source.bytes_at(9 * PART - 7, 14) == parts[8][-7:] + parts[9][:7], "over a border"
    for _ in range(40):
        at = rng.randrange(len(whole))
        n = rng.randrange(1, 1 << rng.randrange(1, 22))
        n = min(n, len(whole) - at)
        assert source.bytes_at(at, n) == whole[at : at + n]
    source.need(0, source.size)
    assert bytes(source.data) == whole
    once = source.filled.unpacked
    assert once < 2 * len(whole)
    source.need(0, source.size)
    assert source.filled.unpacked == once


@pytest.mark.parametrize("name", IN_BLOCKS)
@pytest.mark.parametrize("writable", [False, True])
def test_a_walk_unpacks_its_tables(name: str, writable: bool, tmp_path: Path) -> None:
    """Tables in four of 16 parts: raw, and as a LiME image, which is read through for its headers alone."""
    parts = [np.random.default_rng(i).bytes(PART // 64) * 64 for i in range(16)]
    whole = np.frombuffer(b"".join(parts), np.uint64).copy()
    tables = [3 * PART, 7 * PART, 8 * PART, 14 * PART]
    for table, below in zip(tables, [*tables[1:], 7 << 12], strict=True):
        whole[table // 8 : table // 8 + 512] = 0
        whole[table // 8 + 5] = below | 3
    data = whole.tobytes()
    state = fastmmu.GuestState(cr3=tables[0])
    want = fastmmu.mappings(fastmmu.PhysicalMemory.from_array(whole), state)
    assert len(want) == 1
    cut = [data[at : at + PART] for at in range(0, len(data), PART)]
    path = save(tmp_path, IN_BLOCKS[name](cut))
    image = open_image(path, writable=writable)
    assert image.format == "raw"
    assert fastmmu.mappings(image.memory, state).tobytes() == want.tobytes()
    assert image.memory.copied <= 4 * PAGE
    assert image.memory.read(len(data) - 100, 100) == data[-100:]
    assert image.memory.nbytes == len(data)
    half = len(data) // 2
    parted = lime([(0, data[:half]), (1 << 32, data[half:])])
    image = open_image(save(tmp_path, IN_BLOCKS[name]([parted[at : at + PART] for at in range(0, len(parted), PART)])))
    assert image.format == "lime"
    assert image.memory.read(1 << 32, 99) == data[half : half + 99]
    assert image.memory.read(half - 99, 99) == data[half - 99 : half]
    if writable:
        image = open_image(path, writable=True)
        image.memory.write64(PART, 7)
        assert image.memory.read64(PART) == 7
        assert open_image(path).memory.read64(PART) == int(whole[PART // 8])


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_in_blocks(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    memory = [(PAGE, rng.randbytes(80 * PAGE)), (1 << 32, bytes(20 * PAGE) + rng.randbytes(PAGE))]
    data = WRITERS[name](memory)
    for pack in (xz_blocks, zstd_frames):
        path = save(tmp_path, pack([data[at : at + 100_000] for at in range(0, len(data), 100_000)]))
        image = open_image(path)
        for start, content in memory:
            assert image.memory.read(start, len(content)) == content
            assert image.memory.read64(start + 8) == int.from_bytes(content[8:16], "little")


def test_of_a_block_what_lies_in_front(tmp_path: Path) -> None:
    """`zstd FILE` writes one frame that says its length, `xz FILE` one block."""
    whole = random.Random(3).randbytes(1 << 16) * 256
    for pack in (zstandard.ZstdCompressor().compress, lambda data: lzma.compress(data, preset=0)):
        source = open_source(save(tmp_path, pack(whole)))
        assert source.filled is not None
        assert source.bytes_at(1 << 20, 9) == whole[1 << 20 : (1 << 20) + 9]
        some = source.filled.unpacked
        assert some <= len(whole) / 4
        assert source.bytes_at(5 << 20, 9) == whole[5 << 20 : (5 << 20) + 9]
        assert some < source.filled.unpacked <= len(whole) / 2, "it goes on where it was"


@pytest.mark.parametrize("command", [["xz", "-T2", "--block-size=1MiB"], ["xz", "-k"], ["zstd", "-q"], ["lz4", "-q"]])
def test_what_the_tools_write(command: list[str], tmp_path: Path) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"skipped: {command[0]} is not installed")
    if command[0] == "lz4":
        pytest.importorskip("lz4.frame", reason="skipped: lz4 of the extra 'traces' is not installed")
    whole = b"".join(some_parts(random.Random(4), 4))
    save(tmp_path, whole)
    packed = tmp_path / "packed"
    with packed.open("wb") as out:
        subprocess.run([*command, "-c", str(tmp_path / "image")], stdout=out, check=True)
    blocks = {"-T2": 3, "-k": 1, "-q": 1}[command[1]]
    found = blocks_of(memoryview(packed.read_bytes()), command[0].replace("zstd", "zst"))
    assert (found and len(found)) == (blocks if command[0] != "lz4" else None)
    memory = open_image(packed).memory
    for at in (5 << 19, 0, (3 << 19) - 8, len(whole) - 4096):
        assert memory.read(at, 4096) == whole[at : at + 4096]


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Of a packed image of 192 MB a block is looked at: that takes a process little more than a small image does."""
    frames = [zstandard.ZstdCompressor().compress(np.random.default_rng(1).bytes(1 << 20) * 8)] * 24
    path = save(tmp_path, b"".join(frames))
    program = (
        "import resource, sys, fastmmu\n"
        "from fastmmu.image import open_image\n"
        "open_image(sys.argv[2]).memory.read64(0)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "memory = open_image(sys.argv[1]).memory\n"
        "fastmmu.translate(memory, fastmmu.GuestState(cr3=150 << 20), [0])\n"
        "print(memory.nbytes, memory.read64(5 << 20))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    small = tmp_path / "small"
    small.write_bytes(zstandard.ZstdCompressor().compress(bytes(1 << 16)))
    command = [sys.executable, "-c", program, str(path), str(small)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split()[0] == str(192 << 20)
    assert int(ran.stdout.split()[-1]) < 24 << 10, "KB"


def test_several_threads(tmp_path: Path) -> None:
    parts = some_parts(random.Random(5), 8)
    whole = b"".join(parts)
    source = open_source(save(tmp_path, zstd_frames(parts)))
    wrong: list[int] = []

    def look(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            at = rng.randrange(len(whole) - 5000)
            if source.bytes_at(at, 5000) != whole[at : at + 5000]:
                wrong.append(at)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_damage_is_named_where_it_is_looked_at(name: str, tmp_path: Path) -> None:
    parts = [random.Random(i).randbytes(PART) for i in range(4)]
    data = bytearray(IN_BLOCKS[name](parts))
    data[len(data) * 5 // 8] ^= 0x10
    image = open_image(save(tmp_path, bytes(data)))
    assert image.memory.read(100, 200) == parts[0][100:300]
    if name == "zst" or name == "xz, streams":
        pytest.skip("this part has no checksum, and its bytes stand in it as they are")
    with pytest.raises(fastmmu.ConfigError, match="image: cannot be unpacked: "):
        image.memory.read(2 * PART, PART)


def test_a_length_that_is_not_so(tmp_path: Path) -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(range(256)) * 4096))
    assert frame[4] >> 6 == 2
    frame[5 + 1 - (frame[4] >> 5 & 1)] ^= 1
    with pytest.raises(fastmmu.ConfigError, match=r"image: (the block at byte 0 has|cannot be unpacked)"):
        open_image(save(tmp_path, bytes(frame))).memory.read(0, 1 << 20)
    frame[5:9] = b"\xff\xff\xff\xff"
    assert blocks_of(memoryview(bytes(frame)), "zst") is None, "more than its blocks can hold"


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_cut_short(name: str, tmp_path: Path) -> None:
    data = IN_BLOCKS[name](some_parts(random.Random(6), 3))
    for n in (len(data) - 20, len(data) // 2):
        with pytest.raises(fastmmu.ConfigError, match=r"image: (is cut short|cannot be unpacked)"):
            open_image(save(tmp_path, data[:n])).memory.read(0, 8)


@pytest.mark.parametrize("head", [b"\x28\xb5\x2f\xfd\xa4\0\0\0\1", b"\xff\x06\0\0sNaPpY"])
def test_blocks_of_nothing_are_not_counted(head: bytes, tmp_path: Path) -> None:
    """Zeros behind the first bytes of a packed file, which would be millions of them."""
    (tmp_path / "image").write_bytes(head)
    os.truncate(tmp_path / "image", 1 << 28)
    start = time.process_time()
    with pytest.raises(fastmmu.ConfigError, match=r"cannot be unpacked|is cut short"):
        open_image(tmp_path / "image")
    assert time.process_time() - start < 5


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    for data in (zstd_frames([b"12345678"]), gzip.compress(b"12345678")):
        with pytest.raises(
            fastmmu.ConfigError, match=r"no room for 8 bytes of it, unpacked, in .*TMPDIR names another"
        ):
            open_image(save(tmp_path, data))


def test_streams_that_do_not_say_their_length_are_unpacked_as_a_whole(tmp_path: Path) -> None:
    whole = bytes(range(256)) * 64
    out = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as stream:
        stream.write(whole)
    for data in (out.getvalue(), gzip.compress(whole)):
        source = open_source(save(tmp_path, data))
        assert source.filled is None
        assert bytes(source.data) == whole


def test_packed_twice(tmp_path: Path) -> None:
    whole = random.Random(7).randbytes(1 << 20)
    assert open_image(save(tmp_path, zstd_frames([xz_blocks([whole])]))).memory.read(5, 1000) == whole[5:1005]
