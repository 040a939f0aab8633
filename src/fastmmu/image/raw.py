"""Raw images: the bytes of physical memory from address 0."""

from __future__ import annotations

import mmap
import os

from fastmmu.errors import ConfigError
from fastmmu.paging.memory import PhysicalMemory

__all__ = ["open_raw"]


def open_raw(path: str | os.PathLike[str], *, writable: bool = False) -> PhysicalMemory:
    """A file as memory, mapped and not read: only what is looked at takes time.

    :param writable: writes are possible, and seen by nobody else; the file is never written to.
    :raises ConfigError: the file is empty, or its size is no multiple of 8. :raises OSError: it cannot be opened.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ConfigError(f"{name}: holds 0 bytes; give a raw image of physical memory")
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ)
    try:
        return PhysicalMemory.from_array(view)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
