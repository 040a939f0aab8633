"""Images of physical memory: raw files, sets of pages, and guests recorded with their registers.

    raw     the bytes of physical memory from address 0
    pages   memory out of a few pages
    guest   recorded guests: registers, pages, and what the recording machine said of them
    formats the formats that files have, a row each: what is known by its first bytes
    roots   whether a root table is empty

Imports `paging`: an image ends up as a `PhysicalMemory`.

To add a format: a module that returns a `PhysicalMemory` (with registers a `Guest`), and its option in
`cli/space.py`.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.image.guest import Guest, read_guest
    from fastmmu.image.pages import from_pages
    from fastmmu.image.raw import open_raw
    from fastmmu.image.roots import empty_root

__all__ = ["Guest", "empty_root", "from_pages", "open_raw", "read_guest"]

_HOMES = {
    "fastmmu.image.guest": ("Guest", "read_guest"),
    "fastmmu.image.pages": ("from_pages",),
    "fastmmu.image.raw": ("open_raw",),
    "fastmmu.image.roots": ("empty_root",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
