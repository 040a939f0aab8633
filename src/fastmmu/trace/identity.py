"""A trace that tells its content: the hash of its events, made while they are read for the first time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy.typing as npt

from fastmmu.errors import TraceError
from fastmmu.machine.identity import Content, Origin
from fastmmu.trace.base import Derived, Trace
from fastmmu.trace.events import Batch, concatenate
from fastmmu.trace.read import read_trace

__all__ = ["AnyTrace", "Identified", "identified", "opened"]

KEPT = 64 << 20
"""Bytes of decoded events that a trace keeps for its next pass."""

AnyTrace: TypeAlias = Trace | str | os.PathLike[str] | npt.ArrayLike


class Identified(Derived):
    """The same trace. ``content``: hash of its events, "" until it was read to the end.

    A trace in files is hashed once, and decoded once where its events take no more than `KEPT` bytes, as long as their
    sizes and times stay what they were.
    """

    def __init__(self, inner: Trace) -> None:
        super().__init__(inner)
        self.kind = inner.kind
        self.total = inner.total
        self.content = ""
        self._stamp: object = None
        self._kept: list[Batch] = []  # of its one pass that was hashed
        self._chunk = 0  # with which they were made

    @property
    def in_memory(self) -> bool:  # type: ignore[override]
        """As of the trace, and once its events are kept."""
        return self.inner.in_memory or bool(self.content and self._kept)

    def _pass(self, chunk: int) -> Iterator[Batch]:
        stamp = _stamp(self.path)
        if self.content and stamp is not None and stamp == self._stamp:
            yield from self._kept if self._kept and chunk == self._chunk else self.inner.batches(chunk)
            return
        self.content, content = "", Content()
        self._kept, kept, room = [], [], KEPT if stamp is not None else 0
        self.total = self.inner.total
        for batch in self.inner.batches(chunk):
            content.update(batch.op, batch.size, batch.addr)
            room -= batch.op.nbytes + batch.size.nbytes + batch.addr.nbytes + 4 * len(batch)
            if room > 0:
                batch = concatenate([batch])  # without the rest of a larger one
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        self.content, self._stamp = content.digest(), stamp
        if kept:
            self._kept, self._chunk = kept, chunk
            self.total = sum(map(len, kept))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": []}

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
    if hasattr(trace, "batches"):
        raise TraceError(
            f"a {type(trace).__name__} has batches, but is no fastmmu.Trace; derive its class from it, for its name, "
            "length and content"
        )
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
