"""Images of physical memory: files of the tools that dump it, sets of pages, and guests recorded with their registers.

    image     `open_image`: a file in whatever format, its memory, the registers that it holds
    formats   the formats, a row each: who reads it, or what to do instead; its first bytes: `trace/magics.py`
    source    the bytes of a file, as they are or unpacked
    packed    where the blocks of a packed file are; `filled`: temporary files, unpacked where they are looked at
    layout    what a reader gives: pieces of physical memory and where in the file they lie
    elf, lime, kdump, dmp, vmware       the readers; `notes`: the registers in notes of ELF cores and kdumps
    machines  where virtual machines put RAM that a raw file has without its hole
    raw       the bytes of physical memory from address 0
    pages     memory out of a few pages
    guest     recorded guests: registers, pages, and what the recording machine said of them
    roots     whether a root table is empty

Imports `paging`: an image ends up as a `PhysicalMemory`; and `trace`, whose decompressors it uses.

To add a format: its row in `trace/magics.py`, its reader or remedy in `formats`, and a reader, `read(source)`, that
returns a `Layout`. Uncompressed bytes are never read by it, only placed; what is packed inside comes by `fetch`, page
by page.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.image.guest import Guest, read_guest
    from fastmmu.image.image import Image, open_image
    from fastmmu.image.pages import from_pages
    from fastmmu.image.raw import open_raw
    from fastmmu.image.roots import empty_root

__all__ = ["Guest", "Image", "empty_root", "from_pages", "open_image", "open_raw", "read_guest"]

_HOMES = {
    "fastmmu.image.guest": ("Guest", "read_guest"),
    "fastmmu.image.image": ("Image", "open_image"),
    "fastmmu.image.pages": ("from_pages",),
    "fastmmu.image.raw": ("open_raw",),
    "fastmmu.image.roots": ("empty_root",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
