"""An image of physical memory in whatever format: its memory, and the registers that it holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.image.formats import FORMATS, recognise
from fastmmu.image.layout import Layout
from fastmmu.image.machines import parse_map, placed
from fastmmu.image.raw import ANY_CONTENT, whole_words
from fastmmu.image.source import Source, open_source
from fastmmu.image.vmware import beside
from fastmmu.paging.memory import PhysicalMemory
from fastmmu.paging.state import GuestState

__all__ = ["Image", "open_image"]


@dataclass(frozen=True)
class Image:
    """``path``: the file. ``format``: a name of :data:`~fastmmu.image.formats.FORMATS`, or "raw". ``cpus``: the
    registers that the file holds, a dict a CPU ("cr0", "cr3", "cr4", "efer", as far as it has them). ``info``: what
    else it says of itself.

    Threads: immutable but for its memory, which see."""

    path: str
    format: str
    memory: PhysicalMemory
    cpus: tuple[dict[str, int], ...]
    info: dict[str, str] = field(repr=False)

    @property
    def said(self) -> str:
        """What the file is, in a few words."""
        row = next((row for row in FORMATS if row.name == self.format), None)
        registers = f"; registers by {self.info['registers']}" if "registers" in self.info else ""
        return f"{row.said if row else 'raw memory'}{registers}"

    @checked
    def registers(self, cpu: int = 0) -> dict[str, int]:
        """Those of one CPU.

        :raises ConfigError: the file has none of that CPU.
        """
        if not 0 <= cpu < len(self.cpus):
            has = f"those of CPUs 0 to {len(self.cpus) - 1}" if self.cpus else "none; give CR3"
            raise ConfigError(f"{self.path}: there are no registers of CPU {cpu}: the file has {has}")
        return dict(self.cpus[cpu])

    @checked
    def state(self, cpu: int = 0) -> GuestState:
        """The registers of one CPU; those that the file does not have are as of a 64-bit kernel.

        :raises ConfigError: the file has none of that CPU. :raises StateError: registers that no processor has.
        """
        registers: dict[str, Any] = self.registers(cpu)
        return GuestState(**registers)


@checked
def open_image(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    map: Sequence[str] = (),
    machine: str | None = None,
    writable: bool = False,
    most: int | None = None,
) -> Image:
    """Memory out of a file: an ELF core, LiME, AVML, a kdump, a Windows crash dump, VMware's, or raw; by its content.

    Nothing is read that is not looked at. Files that are packed as a whole (.zst, .gz, .xz, .bz2, .lz4, .sz, LiME's
    compress=1) are unpacked into a temporary file (TMPDIR): xz, bgzip's .gz, .sz, and .zst that say their length, a
    block at a time where it is looked at; the others all at once.

    :param format: "raw": take it for raw memory whatever it begins with; None: by its content.
    :param map: where the parts of a raw file lie, texts "PA=OFFSET:LENGTH" in hexadecimal. :param machine: the same by
        the name of a machine, of :data:`~fastmmu.image.machines.MACHINES`: its RAM as one file, without the hole below
        4 GB.
    :param writable: writes are possible, and seen by nobody else; the file is never written to.
    :param most: bytes of page tables that may be copied out of files that cannot be mapped; None: a quarter of memory.
    :raises ConfigError: a file of another format, one that contradicts itself or is cut short: its name, and what
        to do. :raises MissingExtraError: a package is needed to unpack it. :raises OSError: it cannot be read.
    """
    if format not in (None, "raw"):
        raise ConfigError(f"format={format!r} is none; 'raw', or None: by the content")
    if map and machine is not None:
        raise ConfigError("map and machine say the same; give one of them")
    pieces = parse_map(map)
    source = open_source(path)
    row = None if format == "raw" else recognise(source.head)
    if row is not None and not row.reader:
        raise ConfigError(f"{source.name}: this is {row.said}, not memory; {row.remedy} {ANY_CONTENT}")
    if row is not None and (pieces or machine is not None):
        raise ConfigError(
            f"{source.name}: this is {row.said}, which says itself where memory lies; leave out map, machine"
        )
    if row is None and not pieces and machine is None:
        described = beside(source.name)
        if described is None:
            return _raw(source, writable=writable, most=most)
        source = open_source(described)
        row = recognise(source.head)
        if row is None or row.name != "vmware":
            raise ConfigError(
                f"{described}: this is no description of VMware's, and it stands beside {os.fspath(path)}"
            )
    layout = row.read(source) if row else Layout(pieces or placed(machine or "", source.size))
    memory = layout.memory(source, writable=writable, most=most)
    return Image(source.name, row.name if row else "raw", memory, tuple(layout.cpus), layout.info)


def _raw(source: Source, *, writable: bool, most: int | None) -> Image:
    whole_words(source.name, source.size)
    if source.filled is not None:
        memory = Layout([(0, source.size, 0)]).memory(source, writable=writable, most=most)
        return Image(source.name, "raw", memory, (), {})
    data: Any = source.data
    if writable:
        import mmap

        data = mmap.mmap(source.file.fileno(), 0, access=mmap.ACCESS_COPY)
    return Image(source.name, "raw", PhysicalMemory.from_array(data), (), {})
