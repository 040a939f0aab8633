"""The file of a checkpoint: NumPy's .npz, a zip archive of arrays, and a JSON text beside them.

    checkpoint.json     what it is of: format, version, configuration, ...
    NAME.npy            an array
    blake2b             the hash of all of it

``numpy.load`` reads the arrays, any zip tool the rest. Its data is compressed by deflate, which reads and writes a page
of page tables several times faster than it is simulated, and needs no package beyond NumPy.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu.errors import CheckpointError

__all__ = ["MOST_TEXT", "read_container", "write_container"]

Arrays = dict[str, npt.NDArray[Any]]

TEXT, SUM = "checkpoint.json", "blake2b"
MOST_TEXT = 1 << 24
"""Bytes of the text, at most."""
KINDS = frozenset(np.dtype(name) for name in ("u1", "u2", "u4", "u8"))
"""Types of arrays."""
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, TypeError,
           OverflowError, SyntaxError, MemoryError, AttributeError, IndexError)  # fmt: skip
_THEN = (1980, 1, 1, 0, 0, 0)  # equal states are equal files


def write_container(path: str | os.PathLike[str], text: bytes, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a file, which appears whole, and on disk, in place of one that is there.

    :raises OSError: it cannot be written; one that is there stays as it was.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.part")
    try:
        with open(part, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                _put(archive, TEXT, text)
                for name, array in arrays.items():
                    with archive.open(_info(f"{name}.npy"), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
                _put(archive, SUM, _sum(text, arrays).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
        _settle(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise type(error)(error.errno, error.strerror, os.fspath(path)) from error
        raise


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _THEN)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(_info(name), data, compresslevel=1)


def _settle(folder: Path) -> None:
    """The name is on disk, too, where the file system can say so."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(number)
    finally:
        os.close(number)


def _sum(text: bytes, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    found = hashlib.blake2b(text, digest_size=16)
    for name, array in arrays.items():
        found.update(f"{name} {array.dtype.str} {len(array)}".encode())
        found.update(array.view(np.uint8).data if len(array) else b"")
    return found.hexdigest()


def read_container(path: str | os.PathLike[str]) -> tuple[bytes, Arrays]:
    """Text and arrays of a file; whatever it holds.

    :raises CheckpointError: it is none of these files, or is damaged. :raises OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            text = _member(archive, TEXT, MOST_TEXT)
            arrays = {
                info.filename.removesuffix(".npy"): _array(archive, info)
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            if _member(archive, SUM, 64).decode() != _sum(text, arrays):
                raise CheckpointError(f"{os.fspath(path)}: damaged: its hash is that of other data; take an older one")
    except OSError as error:
        if error.errno is None:  # of a library's own
            raise _damaged(path, error) from error
        raise
    except _DAMAGE as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(path, error) from error
    return text, arrays


def _damaged(path: str | os.PathLike[str], error: BaseException) -> CheckpointError:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"{os.fspath(path)}: no checkpoint, or damaged: {said}")


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > most:
        raise ValueError(f"{name} has {info.file_size} bytes")
    return archive.read(info)


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    data = archive.read(info)
    found: npt.NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if found.dtype not in KINDS or found.ndim != 1:
        raise ValueError(f"{info.filename} is no array of integers")
    return np.ascontiguousarray(found)
