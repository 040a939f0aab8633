"""Files that are read as a whole: settings, schedules, results. A pipe is read to its end, while somebody writes."""

from __future__ import annotations

import os
import select
import stat
import time

from fastmmu.errors import ConfigError

__all__ = ["read_whole"]

WAIT = 5.0
"""Seconds until somebody has to write to a pipe."""
MOST = 1 << 28
"""Bytes that a pipe may bring."""


def read_whole(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file, or what comes out of a pipe until its writers have closed it.

    :raises ConfigError: a directory, device or socket; a pipe to which nobody writes within 5 seconds, or without an
        end; no path. :raises OSError: it cannot be read.
    """
    name = os.fspath(path)
    if "\0" in os.fsdecode(name):
        raise ConfigError(f"{name!r} is no path: a name has no byte 0 in it")
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        kind = os.fstat(number).st_mode
        if stat.S_ISFIFO(kind):
            return _pipe(number, os.fsdecode(name))
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # reading a directory says so itself
            raise ConfigError(f"{os.fsdecode(name)}: this is a device or socket; save it to a file")
        with os.fdopen(os.dup(number), "rb") as file:
            return file.read()
    finally:
        os.close(number)


def _pipe(number: int, name: str) -> bytes:
    found, until = bytearray(), time.monotonic() + WAIT
    while len(found) <= MOST:
        try:
            more = os.read(number, 1 << 20)
        except BlockingIOError:  # somebody has it open, and will write or close it
            select.select([number], [], [])
            continue
        found += more
        if not more and found:
            return bytes(found)
        if not more:  # nobody has opened it yet, or closed it without a byte
            if time.monotonic() > until:
                raise ConfigError(f"{name}: a pipe to which nobody writes; start its writer, or give a file")
            time.sleep(0.02)
    raise ConfigError(f"{name}: a pipe that has brought more than {MOST >> 20} MB; save it to a file")
