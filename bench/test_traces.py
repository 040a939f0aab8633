"""Reading traces: lackey text beside a plain Python parser and `wc -l`; compressed files beside their decompressor."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bench.race import Race, Rival, Scale, timed
from fastmmu import Trace
from fastmmu.trace import CHUNK, bundled, read_trace, write_trace

OPS = {"I  ": 3, " L ": 0, " S ": 1, " M ": 2}


def plain_python(path: Path, lines: int) -> int:
    """What one writes first: a loop over the lines that keeps operation, size and address of each."""
    events: list[tuple[int, int, int]] = []
    total = 0
    with path.open() as file:
        for line, _ in zip(file, range(lines), strict=False):
            addr, size = line[3:].split(",")
            events.append((OPS[line[:3]], int(size), int(addr, 16)))
            if len(events) == CHUNK:  # as a batch goes to the simulator
                total += CHUNK
                events = []
    return total + len(events)


def count(path: Path) -> tuple[int, int]:
    """Events of a file, and the sum of their addresses."""
    total, addresses = 0, 0
    for batch in read_trace(path).batches():
        total += len(batch)
        addresses += int(np.bitwise_xor.reduce(batch.addr))
    return total, addresses


Text = Callable[[str], tuple[Path, int]]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory, scale: Scale) -> Text:
    """`text(suffix)`: the bundled traces one after the other in a file of this kind, and the number of events."""
    where = tmp_path_factory.mktemp("traces")
    events = scale.of(20_000, 1_000_000, 5_000_000)

    def batches() -> Iterator[tuple[np.ndarray, ...]]:
        left = events
        while left:
            for trace in map(read_trace, bundled().values()):
                for batch in trace.batches():
                    part = batch.op[:left], batch.size[:left], batch.addr[:left]
                    left -= len(part[0])
                    yield part

    op, size, addr = (np.concatenate(column) for column in zip(*batches(), strict=True))
    trace = Trace.from_arrays(addr, op, size, name="bench")

    @cache
    def write(suffix: str) -> tuple[Path, int]:
        path = where / f"trace{suffix}"
        if ".champsim" in suffix:
            return path, champsim(path, op, addr)
        if ".memtrace" in suffix:
            return path, drmemtrace(path, op, size, addr)
        write_trace(trace, path, compression=None)
        return path, events

    return write


def champsim(path: Path, op: np.ndarray, addr: np.ndarray) -> int:
    """Write instructions with one load each, as many as there are events half; the number of their events."""
    n = len(op) // 2
    records = np.zeros((n, 8), np.uint64)
    records[:, 0] = 0x400000 + 4 * (np.arange(n) % 1000)
    records[:, 1] = 1 << 16  # destination register 1
    records[:, 4] = addr[:n] | np.uint64(1)
    with lzma.open(path, "wb", preset=0) as out:
        out.write(records.tobytes())
    return 2 * n


def drmemtrace(path: Path, op: np.ndarray, size: np.ndarray, addr: np.ndarray) -> int:
    """Write a record each, a modification as a read and a write; the number of events."""
    kinds = np.array([0, 1, 1, 10], np.uint16)
    record = np.dtype([("type", "<u2"), ("size", "<u2"), ("addr", "<u8")])
    records = np.zeros(len(op), record)
    records["type"], records["size"], records["addr"] = kinds[op], size, addr
    begin = np.array([(25, 0, 6), (22, 4, 7), (24, 4, 7)], record)
    end = np.array([(23, 4, 7), (26, 0, 0)], record)
    with gzip.open(path, "wb", 6) as out:
        for part in (begin, records, end):
            out.write(part.tobytes())
    return len(op)


def unpacked_gz(path: Path) -> Callable[[], float]:
    def run() -> None:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass

    return timed(run)


def unpacked(path: Path) -> Callable[[], float]:
    def run() -> None:
        with lzma.open(path) as file:
            while file.read(1 << 20):
                pass

    return timed(run)


@pytest.mark.benchmark(group="reading traces")
def test_text(race: Race, text: Text, scale: Scale) -> None:
    path, events = text(".lackey")
    few = min(events, scale.of(1_000, 100_000, 500_000))
    rivals = [
        Rival("wc -l", timed(lambda: subprocess.run(["wc", "-l", path], check=True, capture_output=True)), events),
        Rival("plain Python", timed(lambda: plain_python(path, few)), few),
    ]
    found = race(lambda: count(path), events, rivals, bytes_per_item=path.stat().st_size / events)
    assert found[0] == events
    assert plain_python(path, few) == few
    assert found == count(text(".arrow")[0])


@pytest.mark.benchmark(group="reading traces")
@pytest.mark.parametrize("suffix", [".lackey.xz", ".champsim.xz"])
def test_compressed(race: Race, text: Text, suffix: str) -> None:
    """Beside `lzma`, which only unpacks."""
    path, events = text(suffix)
    found = race(lambda: count(path), events, [Rival("lzma", unpacked(path), events)], target=1.1)
    assert found[0] == events


@pytest.mark.benchmark(group="reading traces")
@pytest.mark.parametrize("suffix", [".memtrace.gz", ".din.gz", ".csv.gz"])
def test_gzipped(race: Race, text: Text, suffix: str) -> None:
    """Beside `gzip`, which only unpacks: DynamoRIO's records, and text."""
    path, events = text(suffix)
    found = race(lambda: count(path), events, [Rival("gzip", unpacked_gz(path), events)])
    modified = sum(int((batch.op == 2).sum()) for batch in read_trace(text(".lackey")[0]).batches())
    assert found[0] == events + (modified if suffix == ".din.gz" else 0), "Dinero has a read and a write for each"


@pytest.mark.benchmark(group="reading traces")
@pytest.mark.parametrize("suffix", [".arrow", ".npy"])
def test_columns(race: Race, text: Text, suffix: str) -> None:
    """Files of fastmmu's own, not compressed, beside NumPy's load of the same columns."""
    path, events = text(suffix)
    plain = path.with_suffix(".plain.npy")
    np.save(plain, np.zeros(events * 10, np.uint8))

    def load() -> int:
        return int(np.load(plain).sum(dtype=np.uint64))

    found = race(lambda: count(path), events, [Rival("numpy.load, sum", timed(load), events)], bytes_per_item=10)
    assert found == count(text(".lackey")[0])
