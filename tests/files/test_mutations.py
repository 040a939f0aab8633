"""Every reader of traces and images on files with a few bytes changed: our errors only, in little time and memory.

FASTMMU_EXAMPLES=N reads N changed files of each sample, at random.
"""

from __future__ import annotations

import lzma
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastmmu
from fastmmu import FastmmuError
from fastmmu.image import open_image, read_guest
from fastmmu.image.source import open_source
from fastmmu.study.kvm_log.run import runs
from fastmmu.trace import read_trace
from fastmmu.trace.names import codec_of_name
from fastmmu.trace.source import ByteSource
from fastmmu.trace.survey import survey
from tests.files import folder
from tests.support.bounded import bounded
from tests.support.image_files import WRITERS, vmem

for package in ("cramjam", "lzallright", "lz4", "zstandard", "pyarrow"):
    pytest.importorskip(package, reason=f"skipped: {package} is not installed")

EXAMPLES = int(os.environ.get("FASTMMU_EXAMPLES", "20"))
HEAD = 1 << 16  # of a large file; what is behind is zero
DATA = Path(__file__).parents[1] / "data"


class Sample(NamedTuple):
    """A file: its begin, and how long it is."""

    name: str
    head: bytes
    size: int


def of(name: str, data: bytes) -> Sample:
    return Sample(name, data if len(data) < 1 << 22 else data[:HEAD], len(data))


# ---- changes ---------------------------------------------------------------------------------------------------------

place = st.one_of(st.integers(0, 127), st.integers(0, HEAD), st.integers(0, 1 << 24))
number = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 46,
                     1 << 52, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1]),
)  # fmt: skip
change = st.one_of(
    st.tuples(st.just("put"), place, st.tuples(number, st.sampled_from([1, 2, 4, 8]))),
    st.tuples(st.just("flip"), place, st.tuples(st.integers(0, 7), st.just(0))),
    st.tuples(st.just("cut"), place, st.tuples(st.just(0), st.just(0))),
    st.tuples(st.just("drop"), place, st.tuples(st.integers(1, 300), st.just(0))),
    st.tuples(st.just("again"), place, st.tuples(st.integers(1, 300), st.integers(1, 40))),
)
changes = st.lists(change, min_size=1, max_size=4)


def changed(sample: Sample, how: list[tuple[str, int, tuple[int, int]]]) -> tuple[bytes, int]:
    """The begin and the size of a file."""
    data, size = bytearray(sample.head), sample.size
    for what, where, (value, width) in how:
        at = where % len(data) if data else 0
        if what == "put":
            data[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        elif what == "flip" and data:
            data[at] ^= 1 << value
        elif what == "cut":
            size = min(size, where % (sample.size + 1))
        elif what == "drop":
            del data[at : at + value]
        elif what == "again":
            data[at:at] = data[at : at + value] * width
    size = max(0, size + len(data) - len(sample.head)) if size == sample.size else size
    return bytes(data[:size]), size


def write(path: Path, data: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.truncate(size)


def fuzzed(test: Callable[..., None]) -> Callable[..., None]:
    """A test of all samples and changes of them."""
    return settings(
        max_examples=EXAMPLES,
        derandomize="FASTMMU_EXAMPLES" not in os.environ,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )(given(changes, st.booleans())(test))


# ---- traces ----------------------------------------------------------------------------------------------------------


def files(kind: str) -> list[Path]:
    """The samples of a kind."""
    where = folder() / kind
    return sorted(path for path in where.iterdir() if path.suffix != ".json") if where.is_dir() else []


@cache
def trace_samples() -> dict[str, tuple[Sample, str | None]]:
    """Each file as it is and unpacked, and the format that reads it."""
    found: dict[str, tuple[Sample, str | None]] = {}
    for path in files("traces"):
        try:
            format: str | None = read_trace(path).format
        except FastmmuError:
            format = None
        found[path.name] = of(path.name, path.read_bytes()), format
        with ByteSource(str(path)) as source:
            data = source.read(1 << 22)
        if data != path.read_bytes():
            found[f"{path.name}, unpacked"] = of("t.trace", data), format
    return found


@cache
def written(tmp: Path) -> dict[str, tuple[Sample, str | None]]:
    """Formats and compressions that no sample has."""
    trace = fastmmu.Trace.from_arrays(range(0x1000, 0x9000, 8), [0, 1, 2, 3] * 1024, [8] * 4096)
    found: dict[str, tuple[Sample, str | None]] = {}
    for name in ("t.arrow", "t.npy", "t.parquet", "t.npy.sz", "t.lackey.lzma", "t.csv.gz", "t.din.bz2", "t.arrow.zst"):
        fastmmu.write_trace(trace, tmp / name)
        found[name] = of(name, (tmp / name).read_bytes()), read_trace(tmp / name).format
    return found


def read_one(path: Path, format: str | None) -> None:
    trace = read_trace(path, None if format == "npz" else format)
    survey(trace.head(1 << 20))


TRACES = [name for path in files("traces") for name in (path.name, f"{path.name}, unpacked")]
TRACES = [name for name in TRACES if codec_of_name(name.removesuffix(", unpacked")) or "," not in name]
WRITTEN = ["t.arrow", "t.npy", "t.parquet", "t.npy.sz", "t.lackey.lzma", "t.csv.gz", "t.din.bz2", "t.arrow.zst"]


@pytest.mark.parametrize("name", TRACES or ["none"])
@fuzzed
def test_traces(name: str, tmp_path_factory: pytest.TempPathFactory, how: list, asked: bool) -> None:
    if name not in trace_samples():
        pytest.skip(
            f"skipped: there are no samples in {folder()}, or none is read from {name}; FASTMMU_FILES names them"
        )
    sample, format = trace_samples()[name]
    path = tmp_path_factory.getbasetemp() / sample.name
    write(path, *changed(sample, how))
    with bounded():
        read_one(path, format if asked else None)


@pytest.mark.parametrize("name", WRITTEN)
@fuzzed
def test_written_traces(name: str, tmp_path_factory: pytest.TempPathFactory, how: list, asked: bool) -> None:
    tmp = tmp_path_factory.getbasetemp()
    (tmp / "whole").mkdir(exist_ok=True)
    sample, format = written(tmp / "whole")[name]
    write(tmp / name, *changed(sample, how))
    with bounded():
        read_one(tmp / name, format if asked else None)


SYSTEM = ("shell.rec", "shell.tables.bin", "shell.wdata.bin")


@cache
def system() -> dict[str, Sample]:
    """The files of a recorded system, without most of its records."""
    packed = {name: (DATA / "systems" / f"{name}.xz").read_bytes() for name in SYSTEM}
    return {name: of(name, lzma.decompress(data)[: 24 * 20_000]) for name, data in packed.items()}


@pytest.mark.parametrize("name", SYSTEM)
@fuzzed
def test_system_traces(name: str, tmp_path_factory: pytest.TempPathFactory, how: list, asked: bool) -> None:
    tmp = tmp_path_factory.getbasetemp() / "system"
    tmp.mkdir(exist_ok=True)
    for each, sample in system().items():
        write(tmp / each, *(changed(sample, how) if each == name else sample[1:]))
    with bounded():
        read_one(tmp / "shell.rec", "system" if asked else None)


# ---- logs of KVM -----------------------------------------------------------------------------------------------------

LOGS = sorted(path.name for path in (DATA / "kvm_logs").iterdir())
WORDS = st.sampled_from(
    [b"\n", b" ", b"0x", b"f" * 17, b"9" * 20, b"vcpu 4294967296 ", b"[000] 1.5: kvm_exit: ", b"=", b"-1", b"\xff",
     b"\0", b"rip 0x0 ", b"reason npf", b" excp", b"kvm_mmio: mmio read gpa 0x1000", b"CPU:1 [LOST 99 EVENTS]\n",
     b"[" * 3000]
)  # fmt: skip
words = st.lists(st.tuples(place, WORDS), max_size=3)


@pytest.mark.parametrize("name", LOGS)
@settings(
    max_examples=EXAMPLES,
    derandomize="FASTMMU_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(changes, words, st.booleans())
def test_kvm_logs(name: str, tmp_path_factory: pytest.TempPathFactory, how: list, put: list, asked: bool) -> None:
    data, size = changed(of(name, (DATA / "kvm_logs" / name).read_bytes()), how)
    for at, word in put:
        at %= len(data) + 1
        data, size = data[:at] + word + data[at:], size + len(word)
    path = tmp_path_factory.getbasetemp() / name
    write(path, data, size)
    with bounded():
        log = fastmmu.read_kvm_log(path)
        assert sum(log.by_reason().values()) == len(log.exits) == log.events.get("kvm_exit", 0)
        assert sum(log.by_access().values()) == len(log.faults)
        log.by_again()
        log.notes()
        if asked and runs(log).any():
            list(fastmmu.replay_faults(log, ["4k-log"]))


# ---- images ----------------------------------------------------------------------------------------------------------


@cache
def image_samples() -> dict[str, Sample]:
    """Each file unpacked, and as it is."""
    found = {}
    for path in files("images"):
        if path.suffix == ".zst":
            data = open_source(path).data
            found[path.name] = of(path.name, path.read_bytes())
            found[path.stem] = Sample(path.stem, bytes(data[: HEAD if len(data) >= 1 << 22 else None]), len(data))
    for name, make in WRITERS.items():
        found[f"our {name}"] = of("image", make([(0x1000, bytes(range(256)) * 64), (1 << 32, b"word" * 3072)]))
    return found


def looked_at(image: fastmmu.image.Image) -> None:
    memory = image.memory
    for start, end in memory.ranges[:8].tolist():
        memory.read(start, min(end - start, 5000))
        memory.read64(end - 8)
    state = image.state() if image.cpus else fastmmu.GuestState(cr3=0x100000000)
    list(fastmmu.iter_mappings(memory, state, limit=500))


IMAGES = [name for path in files("images") if path.suffix == ".zst" for name in (path.name, path.stem)]


@pytest.mark.parametrize("name", [*IMAGES, *(f"our {name}" for name in WRITERS)])
@fuzzed
def test_images(name: str, tmp_path_factory: pytest.TempPathFactory, how: list, asked: bool) -> None:
    sample = image_samples()[name]
    path = tmp_path_factory.getbasetemp() / sample.name
    write(path, *changed(sample, how))
    with bounded():
        looked_at(open_image(path, writable=asked))


@fuzzed
def test_vmware(tmp_path_factory: pytest.TempPathFactory, how: list, asked: bool) -> None:
    tmp = tmp_path_factory.getbasetemp()
    memory, description = vmem([(0, bytes(8192)), (1 << 32, b"12345678" * 1024)], magic=b"\xd2\xbe\xd2\xbe")
    (tmp / "guest.vmem").write_bytes(memory)
    write(tmp / "guest.vmss", *changed(of("guest.vmss", description), how))
    with bounded():
        looked_at(open_image(tmp / ("guest.vmem" if asked else "guest.vmss")))


@fuzzed
def test_guests(tmp_path_factory: pytest.TempPathFactory, how: list, asked: bool) -> None:
    tmp = tmp_path_factory.getbasetemp() / "guest"
    tmp.mkdir(exist_ok=True)
    for name in ("meta.json", "mem.npz"):
        sample = of(name, (DATA / "guests" / "pae_user" / name).read_bytes())
        write(tmp / name, *(changed(sample, how) if asked == (name == "mem.npz") else sample[1:]))
    with bounded():
        list(fastmmu.iter_mappings(read_guest(tmp).memory, read_guest(tmp).state, limit=500))
