"""The formats of files that memory is looked for in, a row each: those that are read, and those refused by name.

A format is known by its first bytes (:mod:`fastmmu.trace.magics`). Raw memory has none of its own: a file is taken for
raw where no row knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from fastmmu.trace.magics import KINDS, Kind

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


_NOT_MEMORY = "it holds no memory of a machine"
_TRACE = "it is data, or a trace of accesses, which `fastmmu compare` takes"
_READERS = {
    "elf": "elf.read", "lime": "lime.read", "avml": "lime.read", "kdump": "kdump.read",
    "kdump-flattened": "kdump.read_flattened", "dmp": "dmp.read", "vmware": "vmware.read",
}  # fmt: skip
_REMEDIES = {
    "elf-other": _RAW_DUMP,
    "diskdump": "crash reads it; dump memory with makedumpfile",
    "dmp-32": "dump raw memory, and give --cr3",
    "minidump": "it holds no physical memory: make a complete dump",
    "windows-hibernation": "make a complete memory dump (.dmp)",
    "qemu-migration": _RAW_DUMP,
    "libvirt-save": f"restore it, then {_RAW_DUMP}",
    "virtualbox-saved-state": "write an ELF core: VBoxManage debugvm VM dumpvmcore --filename FILE",
    "xen-save": "use xl dump-core",
    "mach-o": "dump raw memory",
    "ewf": "export it raw (ewfexport)",
}
_BY_KIND = {
    "program": _NOT_MEMORY, "log": _NOT_MEMORY, "other": _NOT_MEMORY, "trace": _TRACE, "disk": _DISK,
    "archive": _UNPACK, "memory": "", "state": _RAW_DUMP, "packed": "",
}  # fmt: skip
_NO_MAGIC = ("lzma", "compress")  # known by so little that memory may begin so


def _row(kind: Kind) -> Format:
    remedy = _REMEDIES.get(kind.name, _UNPACK if kind.name == "zip" else _BY_KIND[kind.of])
    return Format(kind.name, kind.said, kind.knows, remedy, _READERS.get(kind.name, ""))


FORMATS = tuple(_row(kind) for kind in KINDS if kind.name not in _NO_MAGIC)
"""In the order in which they are asked."""


def recognise(head: bytes) -> Format | None:
    """The format of a file that begins so (with :data:`HEAD` bytes); None: raw memory, or nothing that is known."""
    return next((row for row in FORMATS if row.knows(head)), None)
