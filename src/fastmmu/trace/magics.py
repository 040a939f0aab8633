"""Kinds of files by their first bytes, in one place: what the readers of traces and of images go by.

A row says what a file is; what to do with it says who was given it (`trace/foreign.py`, `image/formats.py`). Magic
numbers: the public descriptions of each format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

__all__ = ["KINDS", "Kind", "kind_of"]

Knows = Callable[[bytes], bool]


class Kind(NamedTuple):
    """``said``: in a sentence. ``of``: what it is a kind of. ``codec``: of what is packed, its name."""

    name: str
    said: str
    of: Literal["memory", "state", "program", "disk", "packed", "archive", "trace", "log", "other"]
    knows: Knows
    codec: str = ""


def _at(offset: int, *magics: bytes) -> Knows:
    return lambda head: any(head[offset : offset + len(magic)] == magic for magic in magics)


def _elf(kind: Callable[[int], bool]) -> Knows:
    # e_type, in the byte order of the file
    def knows(head: bytes) -> bool:
        e_type = head[17:15:-1] if head[5:6] == b"\x01" else head[16:18]
        return head[:4] == b"\x7fELF" and kind(int.from_bytes(e_type))

    return knows


def _elf_other(head: bytes) -> bool:
    # a core of 32 bits, of another byte order or of another processor: EM_X86_64 is 62, EM_386 is 3
    ours = head[4:6] == b"\x02\x01" and head[18:20] in (b"\x3e\0", b"\x03\0")
    return _elf(lambda kind: kind == 4)(head) and not ours


def _gzip(head: bytes) -> bool:
    return head[:3] == b"\x1f\x8b\x08" and len(head) > 3 and not head[3] & 0xE0


def _bzip2(head: bytes) -> bool:
    return head[:3] == b"BZh" and head[3:4] in b"123456789" and head[4:8] == b"1AY&"


def _lzma(head: bytes) -> bool:
    # no magic number: the usual properties, and a length that is unknown or below 2**40
    return head[:3] == b"\x5d\0\0" and (head[5:13] == b"\xff" * 8 or (len(head) > 12 and head[10:13] == bytes(3)))


KINDS = (
    Kind("elf-other", "an ELF core that is not one of x86-64", "memory", _elf_other),
    Kind("elf", "an ELF core", "memory", _elf(lambda kind: kind == 4)),
    Kind("elf-program", "an ELF program or library", "program", _elf(lambda kind: kind != 4)),
    Kind("lime", "a LiME image", "memory", _at(0, b"EMiL")),
    Kind("avml", "an AVML image", "memory", _at(0, b"AVML")),
    Kind("kdump", "a kdump", "memory", _at(0, b"KDUMP   ")),
    Kind("diskdump", "an old diskdump", "memory", _at(0, b"DISKDUMP")),
    Kind("kdump-flattened", "a flattened kdump", "memory", _at(0, b"makedumpfile\0")),
    Kind("dmp", "a Windows crash dump", "memory", _at(0, b"PAGEDU64")),
    Kind("dmp-32", "a 32-bit Windows crash dump", "memory", _at(0, b"PAGEDUMP")),
    Kind("minidump", "a Windows minidump", "state", _at(0, b"MDMP")),
    Kind("windows-hibernation", "a Windows hibernation file", "state",
         _at(0, b"hibr", b"HIBR", b"wake", b"WAKE", b"RSTR")),
    Kind("vmware", "a VMware snapshot (.vmss, .vmsn)", "memory",
         _at(0, b"\xd0\xbe\xd2\xbe", b"\xd1\xba\xd1\xba", b"\xd2\xbe\xd2\xbe", b"\xd3\xbe\xd3\xbe")),
    Kind("qemu-migration", "a QEMU migration stream (savevm, virsh save)", "state", _at(0, b"QEVM")),
    Kind("libvirt-save", "a saved guest of libvirt", "state", _at(0, b"LibvirtQemudSave", b"LibvirtQemudPart")),
    Kind("virtualbox-saved-state", "a saved state of VirtualBox", "state", _at(0, b"\x7fVirtualBox SavedState")),
    Kind("xen-save", "a saved domain of Xen", "state", _at(0, b"LinuxGuestRecord", b"Xen saved domain")),
    Kind("mach-o", "a Mach-O file", "program", _at(0, b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe")),
    Kind("qcow2", "a qcow2 disk", "disk", _at(0, b"QFI\xfb")),
    Kind("vmdk", "a VMDK disk", "disk", _at(0, b"KDMV", b"COWD", b"# Disk Descriptor")),
    Kind("vhd", "a VHD or VHDX disk", "disk", _at(0, b"conectix", b"vhdxfile")),
    Kind("vdi", "a VDI disk", "disk", _at(0, b"<<< Oracle VM VirtualBox Disk Image", b"<<< Sun")),
    Kind("ewf", "an EnCase image", "disk", _at(0, b"EVF\x09\r\n\xff\0", b"EVF2\r\n\x81\0")),
    Kind("gzip", "compressed with gzip", "packed", _gzip, "gz"),
    Kind("xz", "compressed with xz", "packed", _at(0, b"\xfd7zXZ\0"), "xz"),
    Kind("zstd", "compressed with zstd", "packed", _at(0, b"\x28\xb5\x2f\xfd"), "zst"),
    Kind("bzip2", "compressed with bzip2", "packed", _bzip2, "bz2"),
    Kind("lz4", "compressed with lz4", "packed", _at(0, b"\x04\x22\x4d\x18"), "lz4"),
    Kind("snappy", "compressed with snappy", "packed", _at(0, b"\xff\x06\0\0sNaPpY"), "sz"),
    Kind("zip", "a zip archive", "packed", _at(0, b"PK\x03\x04", b"PK\x05\x06"), "zip"),
    Kind("lzma", "compressed with lzma", "packed", _lzma, "lzma"),
    Kind("lzop", "compressed with lzop", "archive", _at(0, b"\x89LZO\0\r\n\x1a\n")),
    Kind("compress", "compressed with compress (.Z)", "archive", _at(0, b"\x1f\x9d")),
    Kind("7z", "a 7z archive", "archive", _at(0, b"7z\xbc\xaf\x27\x1c")),
    Kind("rar", "a RAR archive", "archive", _at(0, b"Rar!\x1a\x07")),
    Kind("tar", "a tar archive", "archive", _at(257, b"ustar\0", b"ustar ")),
    Kind("parquet", "a Parquet file", "trace", _at(0, b"PAR1")),
    Kind("arrow", "an Arrow file", "trace", _at(0, b"ARROW1\0\0")),
    Kind("npy", "a .npy file", "trace", _at(0, b"\x93NUMPY")),
    Kind("gem5", "a file of gem5's packets", "trace", _at(0, b"gem5")),
    Kind("perf-data", "a perf.data file", "log", _at(0, b"PERFILE2")),
    Kind("trace-cmd", "a trace-cmd file", "log", _at(0, b"\x17\x08Dtracing")),
    Kind("hdf5", "an HDF5 file", "other", _at(0, b"\x89HDF\r\n\x1a\n")),
    Kind("sqlite", "an SQLite database", "other", _at(0, b"SQLite format 3\0")),
    Kind("pdf", "a PDF file", "other", _at(0, b"%PDF-")),
)  # fmt: skip
"""In the order in which they are asked."""


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file that begins so; None: no row knows it."""
    return next((kind for kind in KINDS if kind.knows(head)), None)
