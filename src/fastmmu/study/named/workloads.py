"""What an experiment runs: a bundled trace or a file, or events that a generator makes of a seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from fastmmu.ops import Op
from fastmmu.trace import Batch, TprProfile, Trace, tpr_profile, with_tpr
from fastmmu.trace.base import Derived

__all__ = ["GENERATORS", "Churn", "File", "Sequential", "Tpr", "Uniform", "Workload", "trace_of"]

BASE = np.uint64(0x1000_0000)
PAGE = np.uint64(12)

_Many = Annotated[int, msgspec.Meta(ge=1, le=1 << 32)]
_None = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Tpr(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TPR traffic between the accesses: a profile's, with figures replaced (:class:`fastmmu.trace.tpr.TprProfile`)."""

    profile: Literal["winxp", "win2003", "linux"]
    register: Literal["page", "cr8"] = "page"
    changes: float | None = None
    reads: float | None = None
    held: float | None = None
    interrupts: float | None = None
    ipis: float | None = None
    handler: Literal["eoi", "irql"] | None = None
    seed: int | None = None

    def made(self) -> TprProfile:
        """The profile.

        :raises ConfigError: a figure is out of range.
        """
        given = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return tpr_profile(given.pop("profile"), **given)


class _Repeated(Derived):
    """A trace several times over."""

    def __init__(self, inner: Trace, times: int) -> None:
        super().__init__(inner)
        self.times = times

    def _pass(self, chunk: int) -> Iterator[Batch]:
        for _ in range(self.times):
            yield from self.inner.batches(chunk)


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundled trace, or a file, `repeat` times. warm_up: accesses that are run and not counted."""

    path: str
    limit: _Many | None = None
    repeat: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    warm_up: _None = 0
    tpr: Tpr | None = None

    def made(self) -> Trace:
        from fastmmu.cli.options import named_trace

        trace = named_trace(self.path)
        trace = trace if self.limit is None else trace.head(self.limit)
        return trace if self.repeat == 1 else _Repeated(trace, self.repeat)


class _OverPages(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accesses to pages; `touched`: behind one to each page, which are not counted."""

    pages: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    accesses: Annotated[int, msgspec.Meta(ge=1, le=1 << 26)]
    writes: _Share = 0.0
    touched: bool = False
    seed: int = 1
    tpr: Tpr | None = None

    @property
    def warm_up(self) -> int:
        """Accesses that are not counted."""
        return self.pages if self.touched else 0

    def _traced(
        self, chance: np.random.Generator, page: npt.NDArray[np.uint64], name: str, *, lines: bool = False
    ) -> Trace:
        """Accesses to these pages, of `lines` each to a line of its page that is drawn."""
        op = np.where(chance.random(self.accesses) < self.writes, Op.WRITE, Op.READ).astype(np.uint8)
        if self.touched:
            page = np.concatenate([np.arange(self.pages, dtype=np.uint64), page])
            op = np.concatenate([np.full(self.pages, Op.WRITE, np.uint8), op])
        addr = BASE + (page << PAGE)
        if lines:
            addr += chance.integers(0, 64, len(addr), np.uint64) << np.uint64(6)
        return Trace.from_arrays(addr, op, name=name)


class Uniform(_OverPages, frozen=True, forbid_unknown_fields=True):
    """Accesses to pages that are drawn alike, each for itself."""

    def made(self) -> Trace:
        chance = np.random.default_rng(self.seed)
        page = chance.integers(0, self.pages, self.accesses, np.uint64)
        return self._traced(chance, page, f"uniform, {self.pages} pages")


class Sequential(_OverPages, frozen=True, forbid_unknown_fields=True):
    """Accesses to pages in their order, one a page, that begin again behind the last. The line of a page is drawn, so
    that data does not meet in one set of a cache."""

    def made(self) -> Trace:
        chance = np.random.default_rng(self.seed)
        page = np.arange(self.accesses, dtype=np.uint64) % np.uint64(self.pages)
        return self._traced(chance, page, f"in order, {self.pages} pages", lines=True)


class Churn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Processes in turn: each maps pages by touching them, uses each a few times, and unmaps them all."""

    rounds: _Many
    pages: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    touches: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] = 4
    processes: Annotated[int, msgspec.Meta(ge=1, le=1 << 10)] = 4
    seed: int = 1
    tpr: Tpr | None = None
    warm_up: _None = 0

    def made(self) -> Trace:
        chance = np.random.default_rng(self.seed)
        parts = [self._round(chance, number) for number in range(self.rounds)]
        op, addr = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Trace.from_arrays(addr, op, name=f"churn, {self.processes} processes")

    def _round(self, chance: np.random.Generator, number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
        pages = BASE + (np.arange(self.pages, dtype=np.uint64) << PAGE)
        used = np.concatenate([pages, chance.choice(pages, self.pages * (self.touches - 1))])
        addr = np.concatenate([[np.uint64(number % self.processes)], used, pages])
        op = np.repeat(np.array([Op.SWITCH, Op.WRITE, Op.UNMAP], np.uint8), [1, len(used), len(pages)])
        return op, addr


Workload = File | Uniform | Sequential | Churn

GENERATORS: dict[str, type[Any]] = {"uniform": Uniform, "sequential": Sequential, "churn": Churn}
"""Name in a file → what it takes."""


def trace_of(workload: Workload) -> Trace:
    """The trace, with TPR traffic where it is asked for.

    :raises TraceError: a file cannot be read. :raises ConfigError: figures of TPR traffic are out of range.
    """
    trace = workload.made()
    return trace if workload.tpr is None else with_tpr(trace, workload.tpr.made())
