"""A trace that tells its content: the hash of its events, made while they are read for the first time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TypeAlias

import numpy.typing as npt

from fastmmu.machine.identity import Content, Origin
from fastmmu.trace.base import Derived, Trace
from fastmmu.trace.events import Batch
from fastmmu.trace.read import read_trace

__all__ = ["AnyTrace", "Identified", "identified", "opened"]

AnyTrace: TypeAlias = Trace | str | os.PathLike[str] | npt.ArrayLike


class Identified(Derived):
    """The same trace. ``content``: hash of its events, "" until it was read to the end.

    A trace in files is hashed once, as long as their sizes and times stay what they were.
    """

    def __init__(self, inner: Trace) -> None:
        super().__init__(inner)
        self.kind = inner.kind
        self.total = inner.total
        self.content = ""
        self._stamp: object = None

    def _pass(self, chunk: int) -> Iterator[Batch]:
        stamp = _stamp(self.path)
        if self.content and stamp is not None and stamp == self._stamp:
            yield from self.inner.batches(chunk)
            return
        self.content, content = "", Content()
        for batch in self.inner.batches(chunk):
            content.update(batch.op, batch.size, batch.addr)
            yield batch
        self.content, self._stamp = content.digest(), stamp

    def origin(self, costs: str = "", geometry: str = "") -> Origin:
        """What figures of this trace were made of."""
        return Origin(self.name, self.path or "", self.content, costs, geometry)


def opened(trace: AnyTrace) -> Trace:
    """What a caller means by a trace: one, the path of one, or a 1-D array of linear addresses, each a read.

    :raises TraceError: it is none of these, or cannot be read.
    """
    if isinstance(trace, Trace):
        return trace
    if isinstance(trace, (str, os.PathLike)):
        return read_trace(trace)
    return Trace.from_arrays(trace, name="array")


def identified(trace: AnyTrace) -> Identified:
    """The trace with its content; itself where it has that. A path or an array is taken, too."""
    return trace if isinstance(trace, Identified) else Identified(opened(trace))


def _stamp(path: str | None) -> tuple[int, int] | None:
    """Size and time of a file; None for what lies in memory and may change unseen."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
