"""Files that are whole or are not there, whatever ends the program meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

__all__ = ["parts", "whole_file"]

parts: set[str] = set()
"""Files that are not complete and go if the program ends here: none, but where the file system has no unnamed files."""


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write bit by bit: it appears when the block ends, in place of one that is there, and not if it fails.

    A link is followed, a device or pipe is written to. Until then the file has no name where Linux can do that
    (O_TMPFILE), so that nothing is left even by SIGKILL; elsewhere it has one that ends in .part.

    :raises OSError: the file cannot be written; one that is there stays as it was.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        try:
            with open(target, "wb") as file:
                yield file
        except OSError as error:
            raise type(error)(error.errno, error.strerror, os.fspath(path)) from error
        return
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    parts.add(str(part))
    unnamed = _unnamed(target.parent)
    try:
        with open(part, "xb") if unnamed is None else os.fdopen(os.dup(unnamed), "wb") as file:
            yield file
        if unnamed is not None:
            _name(unnamed, part)
        if target.exists():
            part.chmod(target.stat().st_mode & 0o7777)
        os.replace(part, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise type(error)(error.errno, error.strerror, os.fspath(path)) from error
        raise
    finally:
        if unnamed is not None:
            os.close(unnamed)
        parts.discard(str(part))


def _unnamed(directory: Path) -> int | None:
    """A file without a name, or None where there is no such thing."""
    if not hasattr(os, "O_TMPFILE") or not os.path.exists("/proc/self/fd"):
        return None
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError:
        return None


def _name(unnamed: int, path: Path) -> None:
    """Give it one; a copy where the file system has no links."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:  # dst_dir_fd makes it linkat with AT_SYMLINK_FOLLOW, without which the link in /proc is linked to
        os.link(f"/proc/self/fd/{unnamed}", path.name, dst_dir_fd=directory, follow_symlinks=True)
    except OSError:
        os.lseek(unnamed, 0, os.SEEK_SET)
        source: IO[bytes]
        with os.fdopen(os.dup(unnamed), "rb") as source, open(path, "xb") as file:
            shutil.copyfileobj(source, file)
    finally:
        os.close(directory)
