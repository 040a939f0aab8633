"""What is fuzzed: each reader of a file that comes from outside."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastmmu
from fastmmu.errors import FastmmuError
from fastmmu.image import Image, open_image, read_guest
from fastmmu.image.source import open_source
from fastmmu.machine.checkpoint.machines import Stored, machine_of, stored
from fastmmu.ops import Op
from fastmmu.study.kvm_log.run import replay_faults, runs
from fastmmu.trace import FORMATS, Trace, read_kvm_log, read_trace, write_trace
from fastmmu.trace.source import ByteSource
from fastmmu.trace.survey import survey
from tests.files import folder
from tests.support import drmemtrace_files as drmemtrace
from tests.support import image_files
from tests.support.trace_files import COMPRESS

__all__ = ["READERS", "Reader"]

MOST = 4032  # bytes of a first input that is cut out of a sample: whole records of 64, 96 and 12 bytes
EVENTS = 1 << 18  # read of one input: compressed data may hold any number
ROWS = 200


class Reader(NamedTuple):
    """``read(path)`` reads the file of an input; ``seeds()``: what it begins with. ``most``: bytes of an input."""

    read: Callable[[Path], None]
    seeds: Callable[[], Iterator[bytes]]
    most: int = 8192


# ---- traces ----------------------------------------------------------------------------------------------------------


def small() -> Trace:
    """A few accesses, as programs make them."""
    at = np.arange(96, dtype=np.uint64)
    op = np.array([Op.FETCH, Op.READ, Op.FETCH, Op.WRITE], np.uint8)[at.astype(np.int64) % 4]
    return Trace.from_arrays(np.where(op == Op.FETCH, 0x401000 + 4 * at, 0x7FFF_0000_0000 + 4104 * at), op, at % 8 + 1)


def as_trace(format: str | None, path: Path) -> None:
    survey(read_trace(path, format).head(EVENTS), progress=None)


def as_columns(path: Path) -> None:
    """The first line says what the columns are."""
    columns, _, text = path.read_bytes().partition(b"\n")
    path.write_bytes(text)
    survey(read_trace(path, columns=columns.decode("utf-8", "replace")).head(EVENTS))


def sampled(format: str | None) -> Iterator[bytes]:
    """The begin of each sample of a format, unpacked; None: of those that are none."""
    where = folder() / "traces"
    for path in sorted(where.iterdir()) if where.is_dir() else ():
        try:
            found = read_trace(path).format
        except FastmmuError:
            found = None
        if found == format:
            with ByteSource(str(path)) as source:
                data = source.read(MOST)
            whole = data if b"\0" in data else data[: data.rfind(b"\n") + 1]
            yield whole + b"#eof\n" * (found == "pinatrace")


def of_format(format: str) -> Iterator[bytes]:
    """Samples, and what is written here."""
    yield from sampled(format)
    if FORMATS[format].written:
        for compression in ("lz4", None) if format in ("arrow", "parquet") else (None,):
            yield written(f"t{FORMATS[format].suffixes[0]}", compression)
    elif format == "npz":
        with tempfile.TemporaryDirectory() as place:
            np.savez(Path(place) / "t.npz", addr=np.arange(64, dtype=np.uint64), op=np.zeros(64, np.uint8))
            yield (Path(place) / "t.npz").read_bytes()
    elif format == "drmemtrace":
        records = [(28, 2, 1), (10, 3, 0x401000), (0, 8, 0x7000), (28, 17, 0x7000), (28, 15, 0x9000), (1, 8, 0x7008),
                   (17, 4, 0x04030201), (28, 2, 2), (0, 1000, 0x9000)]  # fmt: skip
        yield drmemtrace.file(records)
        yield drmemtrace.file(records, width=8)
    elif format == "gem5":
        header, packets = (
            b"\x08\x01\x10\x02\x18\x80\x80\x02",
            [b"\x10\x01\x18\x85\x20\x20\x08", b"\x08\x07\x10\x04\x18\x05"],
        )
        yield b"gem5" + b"".join(bytes([len(message)]) + message for message in (header, *packets))


def written(name: str, compression: str | None = None) -> bytes:
    """The small trace as a file of that name."""
    with tempfile.TemporaryDirectory() as place:
        write_trace(small(), Path(place) / name, compression=compression)
        return (Path(place) / name).read_bytes()


def packed(suffix: str) -> Iterator[bytes]:
    """Of one compression, two formats."""
    for data in (written("t.npy"), written("t.lackey")):
        yield COMPRESS[suffix](data)
        if suffix != ".zip":
            yield COMPRESS[suffix](data[:100]) + COMPRESS[suffix](data[100:])


def as_v2p(path: Path) -> None:
    """v2p.textproto beside a trace of one access."""
    os.replace(path, path.with_name("v2p.textproto"))
    path.with_name("t.trace").write_bytes(drmemtrace.file([(0, 8, 0x7010)]))
    for _ in read_trace(path.parent).head(EVENTS).batches():
        pass


def of_v2p() -> Iterator[bytes]:
    page = b"address_mapping { virtual_address: 0x400000 physical_address: 2097152 }"
    yield b"address_mapping_group {\n  page_size: 2097152 # of x86\n  " + page + b"\n}\ninformation { page_count: 1 }\n"
    sample = folder() / "traces" / "v2p.textproto"
    if sample.exists():
        yield sample.read_bytes()


def of_columns() -> Iterator[bytes]:
    yield b"op addr:hex size\nR 0x401000 4\nW 0x402000 8\n"
    yield b"addr:dec - op\n4198400 x 0\n"
    yield b"addr\n0x1000\n0x2000\n"
    yield b"tid op addr:hex pc size:dec\n1 L 401000 0x4000 8\n2 S 401008 0x4004 8\n"


# ---- images ----------------------------------------------------------------------------------------------------------


def as_image(path: Path) -> None:
    """The first byte says how many zeros stand behind (low four bits), and whether writes are possible."""
    data = path.read_bytes()
    how, data = (data[0], data[1:]) if data else (0, data)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + (1 << 11 + (how & 15) if how & 15 else 0))
    looked_at(open_image(path, writable=bool(how & 16)))


def looked_at(image: Image) -> None:
    memory = image.memory
    for start, end in memory.ranges[:4].tolist():
        memory.read(start, min(end - start, 5000))
        memory.read64(end - 8)
    state = image.state() if image.cpus else fastmmu.GuestState(cr3=0x1000)
    for _ in fastmmu.iter_mappings(memory, state, limit=ROWS):
        pass


def tables() -> list[tuple[int, bytes]]:
    """Memory with tables: five pages at 1000H, one of which maps the others, and two above 4 GB."""
    words = np.zeros((5, 512), np.uint64)
    words[0, [0, 511]] = 0x2003, 0x2003
    words[1, [0, 510]] = 0x3003, 0x83
    words[2, [0, 1]] = 0x4003, 0x2000E3
    words[3, [0, 1, 2, 16]] = 0x1063, 0x8000_0000_0000_2063, 0x5025, 0x1_0000_0025
    return [(0x1000, words.tobytes()), (1 << 32, b"word" * 2048)]


NOTES = image_files.qemu_note(0x80010033, 0x1000, 0x20)
VMCOREINFO = image_files.note(
    b"VMCOREINFO", 0, b"SYMBOL(swapper_pg_dir)=ffffffff80001000\nNUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\n"
)


def of_image(name: str) -> Iterator[bytes]:
    """What our writer of a format makes, and the begin of each sample of it."""
    if name == "elf":
        yield b"\0" + image_files.elf(tables(), NOTES)
        yield b"\0" + image_files.elf(tables(), VMCOREINFO, zeros=[(0x8000, 4096)])
    if name.startswith("kdump"):
        yield b"\0" + image_files.kdump(tables(), notes=NOTES, left_out=lambda number: number == 2, level=31)
    if name.startswith("dmp"):
        yield b"\0" + (image_files.dmp_full if name == "dmp, full" else image_files.dmp_bitmap)(tables(), 0x1000)
    else:
        yield b"\0" + image_files.WRITERS[name](tables())
    where = folder() / "images"
    for path in sorted(where.iterdir()) if where.is_dir() else ():
        try:
            image = open_image(path)
        except FastmmuError:
            continue
        if image.format.split("-")[0] == name.split(",")[0] and image.format != "raw":
            yield b"\x0b" + bytes(open_source(path).data[:MOST])


def as_vmware(path: Path) -> None:
    """The description of a .vmem of two pages."""
    memory, _ = image_files.vmem(tables())
    path.with_name("guest.vmem").write_bytes(memory)
    os.replace(path, path.with_name("guest.vmss"))
    looked_at(open_image(path.with_name("guest.vmem")))


def of_vmware() -> Iterator[bytes]:
    for magic in (b"\xd2\xbe\xd2\xbe", b"\xd0\xbe\xd2\xbe"):
        yield image_files.vmem(tables(), magic=magic)[1]


def raw_packed() -> Iterator[bytes]:
    data = b"".join(page for _, page in tables())
    for suffix in (".gz", ".xz", ".zst", ".bz2", ".lz4", ".sz"):
        if suffix in COMPRESS:
            yield b"\0" + COMPRESS[suffix](data)
    yield b"\0" + image_files.WRITERS["lime, zlib"](tables())


GUEST = Path(__file__).parents[2] / "data" / "guests" / "pae_user"


def as_guest(path: Path) -> None:
    """meta.json, or mem.npz where it begins as a .zip."""
    mine = "mem.npz" if path.read_bytes()[:2] == b"PK" else "meta.json"
    for name in ("meta.json", "mem.npz"):
        path.with_name(name).write_bytes((GUEST / name).read_bytes())
    os.replace(path, path.with_name(mine))
    guest = read_guest(path.parent)
    for _ in fastmmu.iter_mappings(guest.memory, guest.state, limit=ROWS):
        pass


def of_guest() -> Iterator[bytes]:
    meta = json.loads((GUEST / "meta.json").read_text())
    yield json.dumps({name: meta[name] for name in ("cr0", "cr3", "cr4", "efer", "ram_bytes")}).encode()
    with tempfile.TemporaryDirectory() as place:
        np.savez(Path(place) / "mem.npz", pfn=np.array([1, 2]), pages=np.zeros((2, 4096), np.uint8))
        yield (Path(place) / "mem.npz").read_bytes()


# ---- logs of KVM -----------------------------------------------------------------------------------------------------

KVM_LOGS = Path(__file__).parents[2] / "data" / "kvm_logs"


def as_kvm_log(path: Path) -> None:
    log = read_kvm_log(path)
    log.by_reason(), log.by_access(), log.by_again(), log.notes()
    for _ in replay_faults(log, ["4k-log"]) if runs(log).any() else ():
        pass


def of_kvm_log() -> Iterator[bytes]:
    """Some lines of each tracer, and those of other versions."""
    for path in sorted(KVM_LOGS.iterdir()):
        lines = path.read_bytes().splitlines(keepends=True)
        yield b"".join(lines[:24])
        yield b"".join(lines[-12:])
    yield (
        b" a-1 [000] 1.5: kvm_exit: reason EPT_VIOLATION rip 0x1 info 181 0\n"
        b" a-1 [000] 1.6: kvm_page_fault: address 1234567000 error_code 181\n"
        b" a-1 [000] 1.7: kvm_exit: [FAILED TO PARSE] exit_reason=48 guest_rip=0x10 isa=1 info1=388 info2=0\n"
        b"CPU:1 [LOST 17 EVENTS]\n"
    )


# ---- checkpoints -----------------------------------------------------------------------------------------------------

EVENTS_OF_ONE = 300


def as_checkpoint(path: Path) -> None:
    """The file, which has a hash of itself."""
    goes_on(fastmmu.Machine.from_checkpoint(path))


def as_checkpoint_state(path: Path) -> None:
    """Edits of the state of a machine, 16 bytes each: which array, where, what there is; past the hash."""
    data = path.read_bytes()
    config = CHECKPOINTS[data[0] % len(CHECKPOINTS)] if data else CHECKPOINTS[0]
    found = state_of_some(config)
    arrays = {name: array.copy() for name, array in found.arrays.items()}
    names = sorted(name for name, array in arrays.items() if len(array))
    for edit in range(1, min(len(data) - 15, 160), 16):
        which, at, value = int.from_bytes(data[edit : edit + 4], "little"), data[edit + 4 : edit + 8], data[edit + 8 :]
        array = arrays["words" if which & 1 else names[(which >> 1) % len(names)]]
        mask = (1 << 8 * array.dtype.itemsize) - 1
        array[int.from_bytes(at, "little") % len(array)] = int.from_bytes(value[:8], "little") & mask
    goes_on(machine_of(Stored(str(path), found.header, arrays)))


def goes_on(machine: fastmmu.Machine) -> None:
    op, size, addr = some_events()
    machine.run(op, size, addr)
    machine.counters(), machine.tlb.counters(), machine.exit_log()


def some_events() -> tuple[Any, Any, Any]:
    at = np.arange(EVENTS_OF_ONE, dtype=np.uint64)
    return (at % 4).astype(np.uint8), np.ones(len(at), np.uint8), at * np.uint64(0x9E3779B1) & np.uint64(0xFFFFFFF)


CHECKPOINTS = tuple(
    fastmmu.Config(memory="64M", **fields)
    for fields in (
        {}, {"mmu": "shadow", "kvm": "6.1"}, {"mmu": "ept", "kvm": "6.1", "pages": "thp", "thp_threshold": 4},
        {"mmu": "ept", "vendor": "amd"}, {"mmu": "ept", "tpr": "apicv"},
        {"tlb": "strict", "find_missing_flushes": True},
        {"mmu": "ept", "host_memory": "1M", "host_reclaim": "lru", "kvm": "6.1"},
    )
)  # fmt: skip


@cache
def state_of_some(config: fastmmu.Config) -> Stored:
    machine = fastmmu.Machine(config)
    machine.run(*some_events())
    return stored(machine)


def of_checkpoint() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as place:
        for config in CHECKPOINTS[:3]:
            fastmmu.Machine(config).save(path := Path(place) / "c")
            yield path.read_bytes()


def of_checkpoint_state() -> Iterator[bytes]:
    for number in range(len(CHECKPOINTS)):
        yield bytes([number, *range(48)])


# ---- all -------------------------------------------------------------------------------------------------------------

_IMAGES = ("elf", "lime", "avml", "kdump, plain", "kdump, zlib", "kdump, lzo", "kdump, snappy", "kdump, zstd",
           "kdump, flattened", "dmp, full", "dmp, bitmap")  # fmt: skip

READERS: dict[str, Reader] = {
    **{f"trace-{format}": Reader(partial(as_trace, format), partial(of_format, format))
       for format in FORMATS if format not in ("npz", "system")},
    "trace-npz": Reader(partial(as_trace, None), partial(of_format, "npz")),
    "trace-any": Reader(partial(as_trace, None), partial(sampled, None)),
    "trace-columns": Reader(as_columns, of_columns),
    "trace-v2p": Reader(as_v2p, of_v2p, 4096),
    **{f"trace{suffix}": Reader(partial(as_trace, None), partial(packed, suffix)) for suffix in COMPRESS if suffix},
    **{f"image-{name.replace(', ', '-')}": Reader(as_image, partial(of_image, name), 1 << 16) for name in _IMAGES},
    "image-packed": Reader(as_image, raw_packed, 1 << 14),
    "image-vmware": Reader(as_vmware, of_vmware, 1 << 12),
    "guest": Reader(as_guest, of_guest),
    "kvm-log": Reader(as_kvm_log, of_kvm_log),
    "checkpoint": Reader(as_checkpoint, of_checkpoint, 1 << 17),
    "checkpoint-state": Reader(as_checkpoint_state, of_checkpoint_state, 192),
}  # fmt: skip
"""By name."""
