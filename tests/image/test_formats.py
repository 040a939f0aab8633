"""What a file is, by its first bytes; and what is no raw memory is refused by its name."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import fastmmu
from fastmmu.image import open_raw
from fastmmu.image.formats import FORMATS, HEAD, recognise
from fastmmu.trace.magics import KINDS, Kind

ELF = b"\x7fELF\x02\x01\x01" + bytes(9)
HEADS = {
    "elf": ELF + struct.pack("<HH", 4, 62),
    "elf-other": ELF + struct.pack("<HH", 4, 183),
    "elf-program": ELF + struct.pack("<HH", 3, 62),
    "lime": b"EMiL\x01\0\0\0",
    "avml": b"AVML\x02\0\0\0",
    "kdump": b"KDUMP   \x06\0\0\0",
    "diskdump": b"DISKDUMP",
    "kdump-flattened": b"makedumpfile\0\0\0\0",
    "dmp": b"PAGEDU64",
    "dmp-32": b"PAGEDUMP",
    "minidump": b"MDMP",
    "windows-hibernation": b"HIBR",
    "vmware": b"\xd2\xbe\xd2\xbe",
    "qemu-migration": b"QEVM\0\0\0\x03",
    "libvirt-save": b"LibvirtQemudSave",
    "virtualbox-saved-state": b"\x7fVirtualBox SavedState V2.0",
    "xen-save": b"Xen saved domain, xl format\n",
    "mach-o": b"\xcf\xfa\xed\xfe",
    "qcow2": b"QFI\xfb",
    "vmdk": b"KDMV",
    "vhd": b"vhdxfile",
    "vdi": b"<<< Oracle VM VirtualBox Disk Image >>>",
    "ewf": b"EVF\x09\r\n\xff\0",
    "gzip": b"\x1f\x8b\x08\0",
    "xz": b"\xfd7zXZ\0",
    "zstd": b"\x28\xb5\x2f\xfd",
    "bzip2": b"BZh91AY&SY",
    "lz4": b"\x04\x22\x4d\x18",
    "lzop": b"\x89LZO\0\r\n\x1a\n",
    "snappy": b"\xff\x06\0\0sNaPpY",
    "zip": b"PK\x03\x04",
    "7z": b"7z\xbc\xaf\x27\x1c",
    "rar": b"Rar!\x1a\x07\0",
    "tar": b"memory.raw".ljust(257, b"\0") + b"ustar\x0000",
    "parquet": b"PAR1",
    "arrow": b"ARROW1\0\0",
    "npy": b"\x93NUMPY\1\0",
    "gem5": b"gem5",
    "perf-data": b"PERFILE2",
    "trace-cmd": b"\x17\x08Dtracing6\0",
    "hdf5": b"\x89HDF\r\n\x1a\n",
    "sqlite": b"SQLite format 3\0",
    "pdf": b"%PDF-1.7",
}


def test_every_format_stands_here() -> None:
    assert set(HEADS) == {row.name for row in FORMATS}
    assert {"lzma", "compress"} | set(HEADS) == {kind.name for kind in KINDS}
    for row in FORMATS:
        assert bool(row.remedy) == (not row.reader and (recognised(row.name).of != "packed" or row.name == "zip"))


def recognised(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


@pytest.mark.parametrize("name", HEADS)
def test_a_format_is_known_by_its_first_bytes(name: str, tmp_path: Path) -> None:
    found = recognise(HEADS[name])
    assert found is not None
    assert found.name == name
    path = tmp_path / "memory.raw"
    path.write_bytes(HEADS[name].ljust(8192, b"\0"))
    with pytest.raises(fastmmu.ConfigError) as caught:
        open_raw(path)
    assert found.said in str(caught.value)
    assert found.remedy in str(caught.value)
    assert "--format raw" in str(caught.value)
    assert open_raw(path, any_content=True).nbytes == 8192


@pytest.mark.parametrize("head", [b"", bytes(HEAD), b"\x7fEL", b"BZh9", b"\x1f\x8b\x08\xff", b"\x53\xff\0\xf0" * 1152])
def test_raw_memory_is_of_no_format(head: bytes) -> None:
    assert recognise(head) is None


def test_bytes_too_many_are_no_reason_to_pad(tmp_path: Path) -> None:
    path = tmp_path / "memory.raw"
    path.write_bytes(bytes(4096 + 3))
    with pytest.raises(fastmmu.ConfigError, match=r"memory\.raw: 4099 bytes are no multiple of 8.* padding would not"):
        open_raw(path)
