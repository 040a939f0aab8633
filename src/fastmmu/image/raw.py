"""Raw images: the bytes of physical memory from address 0."""

from __future__ import annotations

import mmap
import os
import stat
from typing import BinaryIO

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.image.formats import HEAD, recognise
from fastmmu.paging.memory import PhysicalMemory

__all__ = ["ANY_CONTENT", "open_raw", "open_regular", "whole_words"]

ANY_CONTENT = "(raw memory that happens to begin so: --format raw, open_raw(any_content=True))"
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A file to read, without waiting for whoever would write to a pipe.

    :raises ConfigError: it is no regular file. :raises OSError: it cannot be opened.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
    if kind != stat.S_IFREG:
        file.close()
        what = _KINDS.get(kind, "no regular file")
        raise ConfigError(f"{os.fspath(path)}: this is {what}, and memory is mapped; save it to a file")
    return file


@checked
def open_raw(path: str | os.PathLike[str], *, writable: bool = False, any_content: bool = False) -> PhysicalMemory:
    """A file as memory, mapped and not read: only what is looked at takes time.

    :param writable: writes are possible, and seen by nobody else; the file is never written to.
    :param any_content: take the file for raw memory though its first bytes are those of another format.
    :raises ConfigError: it is no regular file, is empty, its size is no multiple of 8, or it is of another format.
    :raises OSError: it cannot be opened.
    """
    name = os.fspath(path)
    if "\0" in os.fsdecode(name):
        raise ConfigError(f"{name!r} is no path: a name has no byte 0 in it")
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ConfigError(f"{name}: holds 0 bytes; give a raw image of physical memory")
        other = None if any_content else recognise(file.read(HEAD))
        if other is not None:
            remedy = other.remedy or "open_image() reads it"
            raise ConfigError(f"{name}: this is {other.said}, not raw memory; {remedy} {ANY_CONTENT}")
        whole_words(os.fsdecode(name), size)
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ)
    try:
        return PhysicalMemory.from_array(view)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def whole_words(name: str, size: int) -> None:
    """Raises ConfigError where a file cannot be raw memory by its size."""
    if size % 8:
        raise ConfigError(
            f"{name}: {size} bytes are no multiple of 8, so this is not raw memory from address 0: something stands "
            "in front or behind, or the end is missing; padding would not help"
        )
