"""Images of physical memory: raw files, sets of pages, and guests recorded with their registers."""

from __future__ import annotations

from fastmmu.image.guest import Guest, read_guest
from fastmmu.image.pages import from_pages
from fastmmu.image.raw import open_raw

__all__ = ["Guest", "from_pages", "open_raw", "read_guest"]
