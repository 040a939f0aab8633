"""Pieces of a file made in a thread while those before them are used: decompressors need no interpreter."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator

__all__ = ["Ahead", "OtherProcess"]

_BEGIN = 1 << 20  # bytes that are had without a thread: most files are of no more
_PIECES = 2
_WAIT = 0.1  # seconds between two looks whether nobody wants any more


class OtherProcess(RuntimeError):
    """The thread is in the process that this one was forked from."""


class Ahead(Iterator[bytes]):
    """The pieces that `pieces` gives, :data:`_PIECES` of them at most made ahead, once a megabyte was had.

    :meth:`close` ends the thread; `pieces` is used by nobody then. In a forked process there is no thread: an error.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._had = 0
        self._ended = False
        self._stop = threading.Event()
        self._made: queue.Queue[bytes | BaseException | None] = queue.Queue(_PIECES)
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        if self._thread is None and not self._start():
            piece = next(self._pieces)
            self._had += len(piece)
            return piece
        if os.getpid() != self._process:
            raise OtherProcess("another process has begun to read this, of which this one was forked; begin a new pass")
        found = self._made.get()
        if isinstance(found, bytes):
            return found
        self.close()
        if found is None:
            raise StopIteration
        raise found

    def _start(self) -> bool:
        """Whether the thread runs now."""
        if self._had < _BEGIN:
            return False
        thread = threading.Thread(target=self._run, name="fastmmu-unpack", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there may be no more threads
            self._had = 0
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            for piece in self._pieces:
                if not self._put(piece):
                    return
        except BaseException as error:
            last = error
        self._put(last)

    def _put(self, what: bytes | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._made.put(what, timeout=_WAIT)
            except queue.Full:
                continue
            return True
        return False

    def close(self) -> None:
        """End the thread; again is no error."""
        self._ended = True
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is None or os.getpid() != self._process:
            return
        while thread.is_alive():
            try:
                self._made.get_nowait()
            except queue.Empty:
                thread.join(_WAIT / 10)
