"""Files in a .zip: one, or the chunks of one."""

from __future__ import annotations

import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from fastmmu.errors import TraceError
from fastmmu.trace.codecs import CorruptData

__all__ = ["contents", "names"]

_CHUNK = re.compile(r"(.*/)?chunk\.\d+")
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError, IndexError)


def names(path: str) -> list[str]:
    """Names of the files in a .zip; [] where it is none, or no regular file, whose opening might wait."""
    if not os.path.isfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return [info.filename for info in archive.infolist() if not info.is_dir()]
    except (*_BROKEN, NotImplementedError):
        return []


def contents(file: IO[bytes], path: str, piece: int) -> Iterator[bytes]:
    """The bytes of the one file in a .zip, or of the chunks (chunk.0000, ...) one after the other.

    :raises TraceError: it holds several files. :raises CorruptData: it is damaged, encrypted, or of another method.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            found = [info for info in archive.infolist() if not info.is_dir()]
            if len(found) > 1 and not all(_CHUNK.fullmatch(info.filename) for info in found):
                some = ", ".join(info.filename for info in found[:3])
                raise TraceError(f"the .zip holds {len(found)} files ({some}, ...); unpack it, and name one", path=path)
            for info in found:
                with archive.open(info) as member:
                    while data := member.read(piece):
                        yield data
    except TraceError:
        raise
    except (*_BROKEN, NotImplementedError) as error:
        raise CorruptData(" ".join(str(error).split()) or type(error).__name__) from error
