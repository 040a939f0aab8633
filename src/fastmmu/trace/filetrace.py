"""What all readers of files share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastmmu.errors import TraceError
from fastmmu.trace.base import Trace, check_chunk
from fastmmu.trace.events import CHUNK, Batch
from fastmmu.trace.names import trace_name
from fastmmu.trace.source import ByteSource

__all__ = ["FileTrace"]


class FileTrace(Trace):
    """A trace in a file: subclasses turn one ByteSource into batches."""

    path: str

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = trace_name(path)
        self._source: ByteSource | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the file that is open during a pass: a copy of a trace, or one in another process, begins anew."""
        return {**self.__dict__, "_source": None}

    def batches(self, chunk: int = CHUNK) -> Iterator[Batch]:
        check_chunk(chunk)
        return self._pass(chunk)

    def _pass(self, chunk: int) -> Iterator[Batch]:
        with ByteSource(self.path) as source:
            self._source = source
            found = False
            for batch in self._decode(source, chunk):
                found = True
                yield batch
            if not found:
                raise self._nothing()

    def _decode(self, source: ByteSource, chunk: int) -> Iterator[Batch]:
        raise NotImplementedError

    def _nothing(self) -> TraceError:
        """What is said of a file without events."""
        return TraceError("the file holds no events", path=self.path)

    def progress(self) -> float | None:
        return None if self._source is None else self._source.fraction
