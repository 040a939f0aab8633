"""The formats of files that memory is looked for in, a row each: those that are read, and those refused by name.

A format is known by its first bytes. Raw memory has none of its own: a file is taken for raw where no row knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fastmmu.image.layout import Layout
    from fastmmu.image.source import Source

__all__ = ["FORMATS", "HEAD", "Format", "recognise"]

HEAD = 4608
"""Bytes of a file that tell its format."""

_RAW_DUMP = "dump the memory again, as an ELF core (virsh dump --memory-only, QEMU's dump-guest-memory)"
_DISK = "this is a disk, not memory: dump the memory of the running machine"
_UNPACK = "unpack it, and give the file inside"


class Format(NamedTuple):
    """``said``: in a sentence. ``remedy``: what to do with a file of a format that is not read; "": it is read, by the
    function ``reader`` of a module here ("module.function"), or unpacked first."""

    name: str
    said: str
    knows: Callable[[bytes], bool]
    remedy: str = ""
    reader: str = ""

    def read(self, source: Source) -> Layout:
        """Where in the file physical memory lies."""
        module, _, function = self.reader.partition(".")
        layout: Layout = getattr(import_module(f"fastmmu.image.{module}"), function)(source)
        return layout


def _at(offset: int, *magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: any(head[offset : offset + len(magic)] == magic for magic in magics)


def _elf(kind: Callable[[int], bool]) -> Callable[[bytes], bool]:
    # e_type, in the byte order of the file
    def knows(head: bytes) -> bool:
        e_type = head[17:15:-1] if head[5:6] == b"\x01" else head[16:18]
        return head[:4] == b"\x7fELF" and kind(int.from_bytes(e_type))

    return knows


def _elf_other(head: bytes) -> bool:
    # a core of 32 bits, of another byte order or of another processor: EM_X86_64 is 62, EM_386 is 3
    ours = head[4:6] == b"\x02\x01" and head[18:20] in (b"\x3e\0", b"\x03\0")
    return _elf(lambda kind: kind == 4)(head) and not ours


def _vmware(head: bytes) -> bool:
    magics = (b"\xd0\xbe\xd2\xbe", b"\xd1\xba\xd1\xba", b"\xd2\xbe\xd2\xbe", b"\xd3\xbe\xd3\xbe")
    return head[:4] in magics


def _gzip(head: bytes) -> bool:
    return head[:3] == b"\x1f\x8b\x08" and len(head) > 3 and not head[3] & 0xE0


FORMATS = (
    Format("elf-other", "an ELF core that is not one of x86-64", _elf_other, _RAW_DUMP),
    Format("elf", "an ELF core", _elf(lambda kind: kind == 4), reader="elf.read"),
    Format("elf-program", "an ELF program or library", _elf(lambda kind: kind != 4), "it holds no memory of a machine"),
    Format("lime", "a LiME image", _at(0, b"EMiL"), reader="lime.read"),
    Format("avml", "an AVML image", _at(0, b"AVML"), reader="lime.read"),
    Format("kdump", "a kdump", _at(0, b"KDUMP   "), reader="kdump.read"),
    Format("diskdump", "an old diskdump", _at(0, b"DISKDUMP"), "crash reads it; dump memory with makedumpfile"),
    Format("kdump-flattened", "a flattened kdump", _at(0, b"makedumpfile\0"), reader="kdump.read_flattened"),
    Format("dmp", "a Windows crash dump", _at(0, b"PAGEDU64"), reader="dmp.read"),
    Format("dmp-32", "a 32-bit Windows crash dump", _at(0, b"PAGEDUMP"), "dump raw memory, and give --cr3"),
    Format("minidump", "a Windows minidump", _at(0, b"MDMP"), "it holds no physical memory: make a complete dump"),
    Format("windows-hibernation", "a Windows hibernation file", _at(0, b"hibr", b"HIBR", b"wake", b"WAKE", b"RSTR"),
           "make a complete memory dump (.dmp)"),
    Format("vmware", "a VMware snapshot (.vmss, .vmsn)", _vmware, reader="vmware.read"),
    Format("qemu-migration", "a QEMU migration stream (savevm, virsh save)", _at(0, b"QEVM"), _RAW_DUMP),
    Format("libvirt-save", "a saved guest of libvirt", _at(0, b"LibvirtQemudSave", b"LibvirtQemudPart"),
           f"restore it, then {_RAW_DUMP}"),
    Format("virtualbox-saved-state", "a saved state of VirtualBox", _at(0, b"\x7fVirtualBox SavedState"),
           "write an ELF core: VBoxManage debugvm VM dumpvmcore --filename FILE"),
    Format("xen-save", "a saved domain of Xen", _at(0, b"LinuxGuestRecord", b"Xen saved domain"), "use xl dump-core"),
    Format("mach-o", "a Mach-O file", _at(0, b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe"), "dump raw memory"),
    Format("qcow2", "a qcow2 disk", _at(0, b"QFI\xfb"), _DISK),
    Format("vmdk", "a VMDK disk", _at(0, b"KDMV", b"COWD", b"# Disk Descriptor"), _DISK),
    Format("vhd", "a VHD or VHDX disk", _at(0, b"conectix", b"vhdxfile"), _DISK),
    Format("vdi", "a VDI disk", _at(0, b"<<< Oracle VM VirtualBox Disk Image", b"<<< Sun"), _DISK),
    Format("ewf", "an EnCase image", _at(0, b"EVF\x09\r\n\xff\0", b"EVF2\r\n\x81\0"), "export it raw (ewfexport)"),
    Format("gzip", "compressed with gzip", _gzip),
    Format("xz", "compressed with xz", _at(0, b"\xfd7zXZ\0")),
    Format("zstd", "compressed with zstd", _at(0, b"\x28\xb5\x2f\xfd")),
    Format("bzip2", "compressed with bzip2", lambda head: head[:3] == b"BZh" and head[4:10] == b"1AY&SY"),
    Format("lz4", "compressed with lz4", _at(0, b"\x04\x22\x4d\x18")),
    Format("lzop", "compressed with lzop", _at(0, b"\x89LZO\0\r\n\x1a\n"), _UNPACK),
    Format("snappy", "compressed with snappy", _at(0, b"\xff\x06\0\0sNaPpY")),
    Format("zip", "a zip archive", _at(0, b"PK\x03\x04", b"PK\x05\x06"), _UNPACK),
    Format("7z", "a 7z archive", _at(0, b"7z\xbc\xaf\x27\x1c"), _UNPACK),
    Format("rar", "a rar archive", _at(0, b"Rar!\x1a\x07"), _UNPACK),
    Format("tar", "a tar archive", _at(257, b"ustar\0", b"ustar "), _UNPACK),
)  # fmt: skip
"""In the order in which they are asked."""


def recognise(head: bytes) -> Format | None:
    """The format of a file that begins so (with :data:`HEAD` bytes); None: raw memory, or nothing that is known."""
    return next((row for row in FORMATS if row.knows(head)), None)
