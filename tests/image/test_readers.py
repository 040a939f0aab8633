"""Each format, read back: any memory, in each packing; and what contradicts itself is refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

import fastmmu
from fastmmu.image import open_image
from tests.support.image_files import (
    PAGE,
    WRITERS,
    Memory,
    avml,
    dmp_bitmap,
    dmp_full,
    elf,
    flattened,
    kdump,
    lime,
    note,
    qemu_note,
    vmem,
)  # fmt: skip

cramjam = pytest.importorskip("cramjam", reason="cramjam of the extra 'images' is not installed")
pytest.importorskip("lzallright", reason="lzallright of the extra 'images' is not installed")
zstandard = pytest.importorskip("zstandard", reason="zstandard of the extra 'zstd' is not installed")


def some_memory(rng: random.Random, *, whole: bool = True) -> Memory:
    """Ranges with holes between, some of them above 4 GB, of pages that are zero, alike, or random."""
    found, at = [], rng.randrange(3) * PAGE
    for _ in range(rng.randrange(1, 5)):
        pages = [
            rng.choice((bytes(PAGE), rng.randbytes(8) * (PAGE // 8), rng.randbytes(PAGE)))
            for _ in range(rng.randrange(1, 40))
        ]
        data = b"".join(pages)
        if not whole and rng.random() < 0.5:
            data = data[: 8 * rng.randrange(1, len(data) // 8)]
        found.append((at, data))
        at += (len(data) + PAGE - 1) // PAGE * PAGE + rng.choice((PAGE, 17 * PAGE, 1 << 32))
    return found


def check(memory: fastmmu.PhysicalMemory, want: Memory) -> None:
    assert memory.ranges.tolist() == [[start, start + len(data)] for start, data in want]
    for start, data in want:
        assert memory.read(start, len(data)) == data
        for at in range(0, len(data) - 7, 8 * 37):
            assert memory.read64(start + at) == int.from_bytes(data[at : at + 8], "little")
        with pytest.raises(fastmmu.BusError):
            memory.read(start + len(data), 1)


def in_lz4(data: bytes) -> bytes:
    lz4 = pytest.importorskip("lz4.frame", reason="lz4 of the extra 'traces' is not installed")
    return bytes(lz4.compress(data))


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:], mtime=0),
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
    ".bz2": bz2.compress,
    ".lz4": in_lz4,
    ".sz": lambda data: bytes(cramjam.snappy.compress(data)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("seed", range(len(PACKED)))
def test_any_memory_in_each_format(name: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(f"{name}{seed}")
    want = some_memory(rng)
    packing = list(PACKED)[seed % len(PACKED)]
    path = tmp_path / f"image{packing}"
    path.write_bytes(PACKED[packing](WRITERS[name](want)))
    image = open_image(path, writable=bool(seed & 1))
    assert image.format == (name.partition(",")[0] if name != "kdump, flattened" else "kdump-flattened")
    check(image.memory, want)


@pytest.mark.parametrize("piece", [7, 10, 4096])
def test_streams_one_behind_the_other_are_one_wherever_reads_end(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmmu.image.filled.PIECE", piece)
    data = lime([(0, bytes(range(256)) * 16)])
    (tmp_path / "image").write_bytes(gzip.compress(data[:100]) + bytes(20) + gzip.compress(data[100:]) + bytes(9))
    assert open_image(tmp_path / "image").memory.read(0, PAGE) == data[32:]


@pytest.mark.parametrize("write", [lime, avml, elf])
@pytest.mark.parametrize("seed", range(4))
def test_ranges_that_are_no_whole_pages(write: Callable[[Memory], bytes], seed: int, tmp_path: Path) -> None:
    want = some_memory(random.Random(seed), whole=False)
    (tmp_path / "image").write_bytes(write(want))
    check(open_image(tmp_path / "image").memory, want)


def test_mapped_and_not_copied(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(64 * PAGE)
    (tmp_path / "image").write_bytes(dmp_full([(PAGE, data)]))
    memory = open_image(tmp_path / "image").memory
    assert [memory.read64(PAGE + at) for at in range(0, len(data), PAGE)] == [
        int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), PAGE)
    ]
    assert memory.copied == 0
    (tmp_path / "image").write_bytes(lime([(PAGE, data)]))
    memory = open_image(tmp_path / "image").memory
    assert memory.read64(5 * PAGE) == int.from_bytes(data[4 * PAGE : 4 * PAGE + 8], "little")
    assert memory.copied == PAGE


# ---- ELF -------------------------------------------------------------------------------------------------------------


def test_bytes_of_a_core_come_before_zeros(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(2 * PAGE)
    core = elf([(0x2000, data), (0x3000, bytes(PAGE))], zeros=[(0, 6 * PAGE)])
    (tmp_path / "core").write_bytes(core)
    memory = open_image(tmp_path / "core").memory
    assert memory.read(0, 6 * PAGE) == bytes(2 * PAGE) + data + bytes(2 * PAGE)
    (tmp_path / "core").write_bytes(elf([(0x2000, data)], qemu_note(0x80050033, 0x2000, 0xA0), zeros=[(0, 6 * PAGE)]))
    assert open_image(tmp_path / "core").memory.ranges.tolist() == [[0x2000, 0x4000]], "QEMU means other memory"


def test_the_registers_of_a_core(tmp_path: Path) -> None:
    long = qemu_note(0x80050033, 0x5000, 0xA0)
    compat = qemu_note(0x80050033, 0x6000, 0xA0, long=False, kernel_gs=0xFFFF888000000000)
    pae = qemu_note(0x80000011, 0x7000, 0x20, long=False)
    legacy = qemu_note(0x80000011, 0x8000, 0x10, long=False)
    memory = [(0, bytes(16 * PAGE))]
    (tmp_path / "core").write_bytes(elf(memory, long + compat + pae + legacy))
    image = open_image(tmp_path / "core")
    assert [cpu["cr3"] for cpu in image.cpus] == [0x5000, 0x6000, 0x7000, 0x8000]
    assert [image.state(n).mode.name for n in range(4)] == ["LEVEL_4", "LEVEL_4", "PAE", "BITS_32"]
    assert "QEMU" in image.said
    with pytest.raises(fastmmu.ConfigError, match="no registers of CPU 4: the file has those of CPUs 0 to 3"):
        image.state(4)
    info = b"SYMBOL(swapper_pg_dir)=ffffffff8260a000\nNUMBER(phys_base)=-16777216\nNUMBER(pgtable_l5_enabled)=1\n"
    (tmp_path / "core").write_bytes(elf(memory, note(b"VMCOREINFO", 0, info)))
    image = open_image(tmp_path / "core")
    assert (image.state().cr3, image.state().mode.name) == (0x260A000 - (1 << 24), "LEVEL_5")
    assert image.info["NUMBER(phys_base)"] == "-16777216"
    (tmp_path / "core").write_bytes(elf(memory, note(b"VMCOREINFO", 0, info) + long))
    assert open_image(tmp_path / "core").state().cr3 == 0x5000, "a CPU's own come first"
    box = bytearray(1000)
    struct.pack_into("<4Q", box, 288, 0x80050033, 0, 0x9000, 0xA0)
    struct.pack_into("<Q", box, 488, 0xD01)
    notes = note(b"VBCORE", 0xB00, struct.pack("<6I", 0xC01AC0DE, 0x10006, 24, 0, 0, 1)) + note(
        b"VBCPU", 0xB01, bytes(box)
    )
    (tmp_path / "core").write_bytes(elf(memory, notes))
    assert open_image(tmp_path / "core").registers() == {"cr0": 0x80050033, "cr3": 0x9000, "cr4": 0xA0, "efer": 0xD01}
    (tmp_path / "core").write_bytes(elf(memory))
    with pytest.raises(fastmmu.ConfigError, match="no registers of CPU 0: the file has none; give CR3"):
        open_image(tmp_path / "core").state()


def test_segments_are_those_that_pyelftools_finds(tmp_path: Path) -> None:
    elftools = pytest.importorskip("elftools.elf.elffile", reason="pyelftools is not installed")
    want = some_memory(random.Random(9))
    for many in (False, True):
        (tmp_path / "core").write_bytes(elf(want, qemu_note(1, 2, 3), many=many, pad=5))
        with (tmp_path / "core").open("rb") as file:
            found = [
                (segment["p_paddr"], segment.data())
                for segment in elftools.ELFFile(file).iter_segments()
                if segment["p_type"] == "PT_LOAD"
            ]
        assert found == list(want)
        check(open_image(tmp_path / "core").memory, found)


# ---- kdump -----------------------------------------------------------------------------------------------------------


def test_pages_left_out_are_zero_or_unknown(tmp_path: Path) -> None:
    want = [(0x3000, random.Random(3).randbytes(PAGE) + bytes(PAGE) + random.Random(4).randbytes(PAGE))]
    zero = tmp_path / "zero"
    zero.write_bytes(kdump(want, left_out=lambda number: number == 4))
    check(open_image(zero).memory, want)
    other = tmp_path / "other"
    other.write_bytes(kdump(want, level=31, left_out=lambda number: number == 4))
    assert open_image(other).memory.ranges.tolist() == [[0x3000, 0x4000], [0x5000, 0x6000]]
    part = tmp_path / "part"
    part.write_bytes(kdump(want, split=(4, 6)))
    check(open_image(part).memory, [(0x4000, want[0][1][PAGE:])])


def test_the_registers_of_a_kdump(tmp_path: Path) -> None:
    info = b"SYMBOL(swapper_pg_dir)=ffffffff8260a000\nNUMBER(phys_base)=0\n"
    (tmp_path / "vmcore").write_bytes(kdump([(0, bytes(PAGE))], vmcoreinfo=info))
    assert open_image(tmp_path / "vmcore").state().cr3 == 0x260A000
    notes = qemu_note(0x80050033, 0x5000, 0xA0)
    (tmp_path / "vmcore").write_bytes(kdump([(0, bytes(PAGE))], vmcoreinfo=info, notes=notes))
    assert open_image(tmp_path / "vmcore").state().cr3 == 0x5000


def test_a_page_that_cannot_be_unpacked_is_named_when_it_is_read(tmp_path: Path) -> None:
    want = [(0x3000, random.Random(5).randbytes(8) * 1024)]
    for method in ("zlib", "lzo", "snappy", "zstd", "plain"):
        file = bytearray(kdump(want, method=method))
        at = 4 * PAGE + 24  # the second descriptor
        offset, size = struct.unpack_from("<QI", file, at)
        if method == "plain":
            struct.pack_into("<I", file, at + 8, 8)
        elif method == "lzo":
            struct.pack_into("<I", file, at + 12, 6)
        else:
            file[offset : offset + size] = b"\xff" * size
        (tmp_path / "vmcore").write_bytes(file)
        memory = open_image(tmp_path / "vmcore").memory
        assert memory.read64(0x3000) == int.from_bytes(want[0][1][:8], "little")
        for read in (lambda m: m.read64(0x4000), lambda m: m.read(0x3000, 0x2000)):
            with pytest.raises(
                fastmmu.ConfigError, match=r"vmcore: the page at physical address 4000 .*(packed|bytes)"
            ):
                read(memory)
        struct.pack_into("<QI", file, at, 1 << 40, 100)
        (tmp_path / "vmcore").write_bytes(file)
        with pytest.raises(fastmmu.ConfigError, match="cut short"):
            fastmmu.walk(open_image(tmp_path / "vmcore").memory, fastmmu.GuestState(cr3=0x4000), 0)


# ---- VMware, raw -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("magic", [b"\xd0\xbe\xd2\xbe", b"\xd2\xbe\xd2\xbe", b"\xd3\xbe\xd3\xbe", b"\xd1\xba\xd1\xba"])
def test_vmem_with_what_stands_beside_it(magic: bytes, tmp_path: Path) -> None:
    want = some_memory(random.Random(magic))
    memory, description = vmem(want, magic=magic)
    (tmp_path / "guest.vmem").write_bytes(memory)
    (tmp_path / "guest.vmss").write_bytes(description)
    for name in ("guest.vmem", "guest.vmss"):
        image = open_image(tmp_path / name)
        assert (image.format, image.path) == ("vmware", str(tmp_path / "guest.vmem"))
        check(image.memory, want)
    (tmp_path / "guest.vmss").rename(tmp_path / "guest.vmsn")
    (tmp_path / "guest.vmem").unlink()
    (tmp_path / "guest.vmem.zst").write_bytes(PACKED[".zst"](memory))
    check(open_image(tmp_path / "guest.vmem.zst").memory, want)
    check(open_image(tmp_path / "guest.vmsn").memory, want)
    (tmp_path / "guest.vmem.zst").unlink()
    with pytest.raises(fastmmu.ConfigError, match=r"guest\.vmsn: holds no memory; give the \.vmem"):
        open_image(tmp_path / "guest.vmsn")


def test_parts_of_a_raw_file(tmp_path: Path) -> None:
    data = random.Random(6).randbytes(8 * PAGE)
    (tmp_path / "raw").write_bytes(data)
    memory = open_image(tmp_path / "raw", map=["0x1_0000_0000=1000:3000", "5000=0:800"]).memory
    check(memory, [(0x5000, data[:0x800]), (1 << 32, data[0x1000:0x4000])])
    for text, match in (
        ("5000=0:9000", "cut short"),
        ("5000:0=9000", "no PA=OFFSET:LENGTH"),
        ("5000=0:0", "is empty"),
        ("g=0:1000", "no PA"),
        ("ffffffffffff000=0:1000", "more than any machine has"),
    ):
        with pytest.raises(fastmmu.ConfigError, match=match):
            open_image(tmp_path / "raw", map=[text])
    with pytest.raises(fastmmu.ConfigError, match="say the same"):
        open_image(tmp_path / "raw", map=["0=0:1000"], machine="q35")
    (tmp_path / "raw").write_bytes(lime([(0, data)]))
    with pytest.raises(fastmmu.ConfigError, match="LiME image, which says itself"):
        open_image(tmp_path / "raw", machine="q35")


@pytest.mark.parametrize(
    ("machine", "nbytes", "ranges"),
    [
        ("q35", 2816 << 20, [(0, 2 << 30), (4 << 30, 768 << 20)]),
        ("q35", 2815 << 20, [(0, 2815 << 20)]),
        ("i440fx", 3584 << 20, [(0, 3 << 30), (4 << 30, 512 << 20)]),
        ("i440fx", 3583 << 20, [(0, 3583 << 20)]),
        ("i440fx-old", 4 << 30, [(0, 3584 << 20), (4 << 30, 512 << 20)]),
        ("microvm", 4 << 30, [(0, 3 << 30), (4 << 30, 1 << 30)]),
        ("xen", 4 << 30, [(0, 3840 << 20), (4 << 30, 256 << 20)]),
        ("vmware", 6 << 30, [(0, 3 << 30), (4 << 30, 3 << 30)]),
        ("firecracker", 4 << 30, [(0, 3328 << 20), (4 << 30, 768 << 20)]),
        ("cloud-hypervisor", 1 << 30, [(0, 1 << 30)]),
    ],
)
def test_machines(machine: str, nbytes: int, ranges: list[tuple[int, int]], tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.truncate(nbytes)
        file.seek(ranges[0][1] - 8)
        file.write(b"lowlast.")
        if len(ranges) > 1:
            file.write(b"highest.")
    memory = open_image(path, machine=machine).memory
    assert memory.ranges.tolist() == [[start, start + n] for start, n in ranges]
    assert memory.read(ranges[0][1] - 8, 8) == b"lowlast."
    if len(ranges) > 1:
        assert memory.read64(4 << 30) == int.from_bytes(b"highest.", "little")
    with pytest.raises(fastmmu.ConfigError, match="none of i440fx"):
        open_image(path, machine="pc")


# ---- refusals --------------------------------------------------------------------------------------------------------

HEAD = struct.Struct("<IIQQQ")


def kdump_of_many_ranges() -> bytearray:
    """All but the last page are left out, and each second of them is memory."""
    file = bytearray(kdump([(0x3FFFF * PAGE, bytes(PAGE))]))
    there = 2 * PAGE
    assert file[there + 0x7FFF] == 0x80
    file[there : there + 0x8000] = b"\xaa" * 0x8000
    return file


WRONG: dict[str, tuple[bytes, str]] = {
    "cut lime": (lime([(0, bytes(2 * PAGE))])[:-1], "cut short: physical memory at 0 lies at bytes 32..8223"),
    "lime, second header": (lime([(0, bytes(PAGE))]) + bytes(40), "at byte 4128, where the header of a range"),
    "lime, half a header": (lime([(0, bytes(PAGE))]) + bytes(8), "cut short: 32 bytes at byte 4128"),
    "lime, a range that is none": (HEAD.pack(0x4C694D45, 1, 5, 4, 0), "range 0x5..0x4"),
    "lime, beyond": (HEAD.pack(0x4C694D45, 1, 0, (1 << 64) - 1, 0), "range 0x0..0xffffffffffffffff"),
    "avml, version": (HEAD.pack(0x4C4D5641, 3, 0, 7, 0), "version 3"),
    "cut avml": (avml([(0, bytes(PAGE))])[:-9], "cut short"),
    "avml, length": (avml([(0, bytes(PAGE))])[:-8] + bytes(8), "and 0 by what follows"),
    "avml, chunk": (HEAD.pack(0x4C4D5641, 2, 0, 4095, 0) + b"\x05\0\0\0", "type 0x5, which is none"),
    "avml, long": (HEAD.pack(0x4C4D5641, 2, 0, 7, 0) + b"\x00\x09\0\0" + bytes(4) + b"\xff" * 5, "0 bytes, 8 are left"),
    "avml, twice": (avml([(0, bytes(PAGE)), (0, bytes(PAGE))]), "two of its ranges hold physical address 0x0"),
    "cut elf": (elf([(0, bytes(PAGE))])[:-1], "cut short: physical memory at 0"),
    "elf, no headers": (elf([(0, bytes(PAGE))])[:70], "cut short"),
    "elf, empty": (elf([]), "holds no physical memory"),
    "elf, notes again": (elf([])[:56] + struct.pack("<H6x", 99) + struct.pack("<IIQQQQQQ", 4, *[0] * 4, 999, 0, 0) * 99,
                         "its notes have 98901 bytes, and all of it 5608"),
    "elf, a process": (elf([(0, bytes(8))], note(b"CORE", 6, bytes(16))), "core of a process"),
    "elf, no addresses": (elf([(4096, bytes(8)), (8192, bytes(8))], paddr=lambda start: 0), "p_paddr is 0 in all"),
    "elf, arm": (elf([(0, bytes(PAGE))], machine=183), "not one of x86-64"),
    "kdump, blocks": (b"KDUMP   " + bytes(420) + struct.pack("<iiII", 512, 1, 2, 5) + bytes(8000), "of 512 bytes"),
    "cut kdump": (kdump([(0, bytes(PAGE))])[:9000], "cut short"),
    "flattened, record": (flattened(bytes(8))[:4096] + struct.pack(">qq", 5, 1 << 40), "1099511627776 bytes for"),
    "flattened, other": (flattened(b"ELF" * 9), "holds no kdump"),
    "flattened, cut": (flattened(kdump([(0, bytes(PAGE))]))[:-16], "cut short"),
    "kdump, memory everywhere": (bytes(kdump_of_many_ranges()), "memory in 131072 ranges; no machine has so many"),
    "kdump, no descriptors": (kdump([(0, bytes(9 * PAGE))])[: 4 * PAGE + 100], "it has 16484 bytes, and 9 pages"),
    "dmp, bitmap, cut": (dmp_bitmap([(0, bytes(2 * PAGE))])[:-1], "cut short: 2 pages at byte 12288"),
    "dmp, runs": (dmp_full([(i * 8192, bytes(PAGE)) for i in range(44)]), "44 runs"),
    "dmp, cut": (dmp_full([(0, bytes(2 * PAGE))])[:-1], "cut short"),
    "gz, cut": (gzip.compress(bytes(100000))[:-9], "compressed data ends early"),
    "gz, more": (gzip.compress(bytes(PAGE)) + b"more", "something else follows"),
    "xz, wrong": (lzma.compress(bytes(100000))[:30] + bytes(200), "cannot be unpacked"),
    "zlib lime, cut": (zlib.compress(lime([(0, bytes(PAGE))]))[:-2], "ends early"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_contradicts_itself_is_named(name: str, tmp_path: Path) -> None:
    content, match = WRONG[name]
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(fastmmu.ConfigError, match=match) as caught:
        open_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("kind", "match"), [(2, "a kernel dump"), (4, "a small dump"), (77, "a dump of type 77")])
def test_dumps_of_windows_that_are_not_read(kind: int, match: str, tmp_path: Path) -> None:
    file = bytearray(dmp_full([(0, bytes(PAGE))]))
    struct.pack_into("<I", file, 0xF98, kind)
    (tmp_path / "memory.dmp").write_bytes(file)
    with pytest.raises(fastmmu.ConfigError, match=rf"memory\.dmp: {match}.*complete memory dump"):
        open_image(tmp_path / "memory.dmp")
    struct.pack_into("<I", file, 0x30, 0xAA64)
    (tmp_path / "memory.dmp").write_bytes(file)
    with pytest.raises(fastmmu.ConfigError, match="type 0xaa64, not of x64"):
        open_image(tmp_path / "memory.dmp")
