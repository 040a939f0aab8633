"""The log of Valgrind on its way to the recorder: a pipe, or with children a socket a program (`valgrind`)."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from fastmmu.trace import valgrind

__all__ = ["TEXT", "Log", "Pipe", "Sockets"]

TEXT = 1 << 18
"""Bytes read at a time."""

_PIPE = 1 << 20  # bytes that it holds: some 70,000 events
_PAUSE = 0.003  # seconds in which Valgrind fills it, so that it is read in large pieces
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ of fcntl(2)


class Log:
    """Where Valgrind writes to."""

    def start(self, found: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
        """Run the program."""
        raise NotImplementedError

    def read(self, seconds: float, process: subprocess.Popen[bytes]) -> list[tuple[int, int, bytes | None]] | None:
        """What came, waiting so long: (log, process, bytes, or None where the log ends); None: there is no more."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is read any more."""
        raise NotImplementedError


class Pipe(Log):
    """Of one process."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            fcntl.fcntl(self._read, _SET_PIPE_SIZE, _PIPE)
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._read, selectors.EVENT_READ)

    def start(self, found: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
        argv = [found, *valgrind.options(self._write, children=False), "--", *words]
        process = subprocess.Popen(argv, pass_fds=(self._write,))
        os.close(self._write)
        self._write = -1
        return process

    def read(self, seconds: float, process: subprocess.Popen[bytes]) -> list[tuple[int, int, bytes | None]] | None:
        ended = process.poll() is not None  # others that it started may hold the pipe open
        if not self._ready.select(0 if ended else seconds):
            return None if ended else []
        data = os.read(self._read, TEXT)
        if not data:
            return None
        if len(data) < TEXT // 4 and not ended:
            time.sleep(_PAUSE)
        return [(0, process.pid, data)]

    def close(self) -> None:
        self._ready.close()
        for one in (self._read, self._write):
            if one >= 0:
                os.close(one)


class Sockets(Log):
    """Of all processes: a connection for each program that is started, whose senders it names."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "log")
        self._launcher = valgrind.launcher(folder, self._path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen(64)
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._listener, selectors.EVENT_READ)
        self._logs: dict[socket.socket, int] = {}
        self._count = 0

    def start(self, found: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
        program = shutil.which(words[0]) or words[0]
        argv = [str(self._launcher), *valgrind.options(-1, children=True), program, *words[1:]]
        return subprocess.Popen(argv)

    def read(self, seconds: float, process: subprocess.Popen[bytes]) -> list[tuple[int, int, bytes | None]] | None:
        ended = process.poll() is not None
        found: list[tuple[int, int, bytes | None]] = []
        ready = self._ready.select(seconds)
        if not ready and ended and not self._logs:
            return None
        small = bool(ready)
        for key, _ in ready:
            if key.fileobj is self._listener:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                self._logs[connection] = self._count
                self._count += 1
                self._ready.register(connection, selectors.EVENT_READ)
                continue
            one = key.fileobj
            assert isinstance(one, socket.socket)
            data, extra, _, _ = one.recvmsg(TEXT, socket.CMSG_SPACE(12))
            if not data:
                self._ready.unregister(one)
                found.append((self._logs.pop(one), 0, None))
                one.close()
                continue
            small &= len(data) < TEXT // 16
            found.append((self._logs[one], struct.unpack("iII", extra[0][2])[0] if extra else 0, data))
        if small:
            time.sleep(_PAUSE / 10)  # a socket holds less than a pipe
        return found

    def close(self) -> None:
        self._ready.close()
        for one in (self._listener, *self._logs):
            one.close()
