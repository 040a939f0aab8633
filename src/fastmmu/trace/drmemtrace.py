"""DynamoRIO's drmemtrace (drcachesim -offline): records of 12 bytes, 8 from a 32-bit process, little-endian.

A file is what one thread did, or one core; a folder (drmemtrace.*.dir, or its trace/) holds those of a run. Threads of
a process share its memory, so the events of all files come in the order of their time stamps, with a switch between
processes; with ``threads="apart"`` each thread is a process of its own. Prefetches, cache flushes and repeated string
instructions that were not fetched again are no events. An access of more than 255 bytes becomes several.

Where pages lay in physical memory is said by markers, or by a v2p.textproto, of a folder its own (:mod:`v2p`): before
the first event of each process stands where its pages are (Op.PLACE), and the guest kernel maps them so.
"""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from fastmmu.errors import TraceError
from fastmmu.ops import Op
from fastmmu.trace.drmemtrace_parse_py import Records
from fastmmu.trace.events import Batch, empty_batch
from fastmmu.trace.filetrace import FileTrace
from fastmmu.trace.source import ByteSource
from fastmmu.trace.v2p import NAME, place_events, read_v2p

__all__ = ["READER", "DrmemtraceTrace", "folder_files", "looks_like", "v2p_of"]

_BUFFER = 3 << 16  # bytes: whole records of both widths
_HEADER, _THREAD, _PID, _MARKER = 25, 22, 24, 28
_NEWEST = 7  # version of the records that is known
_TIME, _WHO, _PAGE, _ROOM, _END = 1, 2, 3, 4, 5
_FAULTS = {
    -1: "a record of a type that is not known",
    -2: "a bundle of more instructions than a record has room for",
    -3: "records behind the footer",
}


def looks_like(head: bytes) -> bool:
    """Whether a file begins with a header of drmemtrace's."""
    return _width(head) is not None


def _width(head: bytes) -> int | None:
    """Bytes of a record of a file that begins so, or None."""

    def at(place: int, n: int) -> int:
        return int.from_bytes(head[place : place + n], "little")

    if len(head) < 16 or at(0, 2) != _HEADER or at(2, 2) != 0 or not 1 <= at(4, 4) < 100:
        return None
    if at(8, 4) == 0 and at(12, 2) in (_THREAD, _PID, _MARKER):
        return 12
    return 8 if at(8, 2) in (_THREAD, _PID, _MARKER) else None


def folder_files(path: str) -> list[str]:
    """The files of drmemtrace in a folder, or in its `trace`, in the order of their names."""
    place = Path(path)
    place = place / "trace" if (place / "trace").is_dir() else place
    found = []
    for file in sorted(place.iterdir()):
        if file.is_file() and file.stat().st_size:
            try:
                with ByteSource(str(file)) as source:
                    if looks_like(source.read(64)):
                        found.append(str(file))
            except TraceError:
                continue
    return found


def v2p_of(path: str) -> str | None:
    """The v2p.textproto of a folder: in it, in its `aux` or `trace`, or beside that; None of a file."""
    place = Path(path)
    if not place.is_dir():
        return None
    places = (place, place / "aux", place / "trace", *([place.parent, place.parent / "aux"] * (place.name == "trace")))
    return next((str(each / NAME) for each in places if (each / NAME).is_file()), None)


class DrmemtraceTrace(FileTrace):
    """The events of a file, or of all files of a folder.

    ``threads``: "together" (by time stamps, processes told apart) or "apart" (each thread a process).
    ``v2p``: the file that says where pages lie; "none": nothing does, the markers neither; None: that of the folder,
    else the markers.
    """

    format = "drmemtrace"
    instructions = "fetches"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.threads = "together"
        self.v2p: str | None = None
        self._left_out = 0  # pages of addresses that no program of x86-64 has
        self._files = folder_files(path) if os.path.isdir(path) else [path]
        self._done = 0.0

    def progress(self) -> float | None:
        return self._done

    def notes(self) -> list[str]:
        if not self._left_out:
            return []
        return [f"{self._left_out} pages of {NAME} are left out: their addresses are none of a program of x86-64"]

    def by_thread(self) -> list[tuple[int, DrmemtraceTrace]]:
        """The threads of a folder that have events, in the order of their files: PID, and its events alone.

        :raises TraceError: a file that is none, or is cut short.
        """
        found = []
        for path in self._files:
            stream = _Stream(path, 0, False)
            try:
                stream.records.forget()
                if stream.events(empty_batch(1), 0)[1] == _WHO:
                    part = DrmemtraceTrace(path)
                    part.v2p = v2p_of(self.path or "") if self.v2p is None else self.v2p
                    found.append((stream.records.pid, part))
            finally:
                stream.source.close()
        return found

    def _places(self) -> tuple[list[tuple[int, int, int]], bool]:
        """Events that say where the pages of each process lie, and whether markers are to be heard."""
        file = v2p_of(self.path or "") if self.v2p is None else self.v2p
        if file is None or file == "none":
            return [], file is None
        pages = read_v2p(file)
        self._left_out = sum(page.va + page.nbytes > 1 << 47 for page in pages)
        return place_events(pages), False

    def _pass(self, chunk: int) -> Iterator[Batch]:
        streams: list[_Stream] = []
        try:
            streams += (_Stream(path, number, len(self._files) > 1) for number, path in enumerate(self._files))
            total = sum(stream.source.size for stream in streams)
            for batch in self._merged(streams, chunk):
                self._done = sum(stream.source.taken for stream in streams) / max(total, 1)
                yield batch
            self._done = 1.0
        finally:
            for stream in streams:
                stream.source.close()

    def _merged(self, streams: list[_Stream], chunk: int) -> Iterator[Batch]:
        """The parts between time stamps, earliest first; parts of one time in the order of the files."""
        processes: dict[int, int] = {}  # PID, or TID, and its number
        running, n, found = 0, 0, False
        places, marked = self._places()
        placed: set[int] = set()  # processes of which it was said
        first: deque[tuple[int, int, int]] = deque()  # events that come before those of the stream
        batch = empty_batch(chunk)
        queue = [(0, stream.number) for stream in streams]
        while queue:
            number = heapq.heappop(queue)[1]
            records = streams[number].records
            records.forget()
            why = _ROOM
            while why in (_ROOM, _WHO, _PAGE):
                n, why = streams[number].events(batch, n)
                if why == _WHO:
                    process = records.tid if self.threads == "apart" else records.pid
                    process = processes.setdefault(process, len(processes))
                    if process != running:
                        first.append((Op.SWITCH, 0, process))
                        running = process
                    if process not in placed:
                        first.extend(places)
                        placed.add(process)
                    records.seen()
                elif why == _PAGE and marked:
                    virtual, physical = records.page
                    first.append((Op.PLACE, 0, virtual & -4096))
                    first.append((Op.PLACE, 12, physical & -4096))
                while n == chunk or first:
                    if n == chunk:
                        found = True
                        yield batch
                        batch, n = empty_batch(chunk), 0
                    if first:
                        batch.op[n], batch.size[n], batch.addr[n] = first.popleft()
                        n += 1
            if why == _TIME:
                heapq.heappush(queue, (records.time, number))
        if n:
            yield batch[:n]
        elif not found:
            raise self._nothing()


class _Stream:
    """A file that is being read."""

    def __init__(self, path: str, number: int, timed: bool) -> None:
        self.number = number
        self.source = ByteSource(path)
        self._view = memoryview(bytearray(_BUFFER))
        self._start, self._stop = 0, self.source.fill(self._view)
        head = bytes(self._view[: min(self._stop, 64)])
        width = _width(head)
        if width is None:
            self.source.close()
            raise TraceError("this does not begin with a header of drmemtrace", path=path, where="byte 0")
        if head[4] > _NEWEST:
            self.source.close()
            raise TraceError(f"version {head[4]} of drmemtrace is not known, only 1 to {_NEWEST}", path=path)
        self._width = width
        self._base = 0  # place of the buffer in the file
        self.records = Records(width, timed)

    def events(self, batch: Batch, n: int) -> tuple[int, int]:
        """Events into `batch` from row n on: rows filled, and _TIME, _WHO, _ROOM or _END."""
        while True:
            self._start, n, why = self.records.parse(
                self._view, self._start, self._stop, batch.op, batch.size, batch.addr, n
            )
            if why < 0:
                raise self._bad(_FAULTS[why])
            if why in (_TIME, _WHO):
                return n, why
            if why == _PAGE:
                return n, _PAGE
            if n == len(batch):
                return n, _ROOM
            if not self._more():
                return n, _END

    def _more(self) -> bool:
        """Whether there was more to read."""
        rest = self._stop - self._start
        self._view[:rest] = self._view[self._start : self._stop]
        self._base += self._start
        self._start, self._stop = 0, rest + self.source.fill(self._view[rest:])
        if self._stop > rest:
            return True
        if rest:
            raise self._bad("the file ends within a record: it was cut short")
        if not self.records.ended:
            raise self._bad("the file ends without a footer: it was cut short; --limit takes the events before")
        return False

    def _bad(self, what: str) -> TraceError:
        place = self._base + self._start
        kind = int.from_bytes(self._view[self._start : self._start + 2], "little")
        said = f" ({kind})" if self._stop - self._start >= 2 else ""
        return TraceError(f"{what}{said}", path=self.source.path, where=f"byte {place}")


READER = DrmemtraceTrace
