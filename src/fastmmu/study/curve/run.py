"""Miss-ratio curves: how often TLBs of every size would miss on a trace, from one pass over it.

What is counted is the accesses of the trace itself, as ``Config(premapped=True)`` runs them: no kernel, no faults. A
SWITCH flushes (with `pcid`: does not), FORK does; INVLPG, UNMAP, MUNMAP and PROTECT invalidate their pages. The second
level sees the misses of the first level of the given geometry, whose replacement is LRU in both.

Exact for every set-associative array up to `ways` ways and every fully associative one up to `limit` entries. With
`sample` below 1 the fully associative curves are estimates from a share of the pages, drawn by a hash of their number
(spatial sampling, as SHARDS does); `error` is then one standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.identity import UNKNOWN, Origin
from fastmmu.machine.side_by_side import block_bytes, in_memory
from fastmmu.sizes import page_size
from fastmmu.study.curve.curve_kernel_py import StackDistances
from fastmmu.study.curve.parts import STREAMED, Numbers, in_threads, on_executor
from fastmmu.study.sweep.executors import opened
from fastmmu.study.sweep.work import GivenTrace, TraceSpec, placed
from fastmmu.threads.lanes import Lane, in_lanes, workers
from fastmmu.tlb.geometry import Array, Geometry, geometry, parse_array
from fastmmu.trace.identity import AnyTrace, Identified, identified

__all__ = ["Curve", "Curves", "tlb_curve"]

LEAST = 1 << 20
"""Events below which a trace is counted in one piece."""
UNITS = ("l1d", "l1s", "l1i", "l2", "l2i")
SHIFT = {"4k": 12, "2m": 21}
L1_SETS, L2_SETS = (4, 8, 16, 32, 64), (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Curve:
    """Misses of one array of the TLB at every size.

    ``unit``: l1d, l1s (stores), l1i, l2, l2i. ``sets``: 1 for fully associative arrays. ``entries``: int64 (n,),
    ascending, the sizes at which the number of misses changes; ``misses``: float64 (n,), whole numbers where exact;
    ``error``: float64 (n,), one standard error of ``misses``, 0 where exact. ``lookups``: what the array was asked.
    ``sample``: share of the pages that were followed, 1: exact; ``pages``: how many those were.
    """

    unit: str
    sets: int
    lookups: int
    entries: npt.NDArray[np.int64]
    misses: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]
    sample: float
    pages: int

    @checked
    def at(self, entries: int) -> tuple[float, float]:
        """(misses, their standard error) of an array of so many entries.

        :raises ConfigError: fewer entries than sets.
        """
        i = int(np.searchsorted(self.entries, entries, side="right")) - 1
        if i < 0:
            raise ConfigError(f"{entries} entries in {self.sets} sets; the curve begins at {int(self.entries[0])}")
        return float(self.misses[i]), float(self.error[i])


@dataclass(frozen=True)
class Curves:
    """All curves of a trace.

    ``accesses``: pages looked up, one more for an access that crosses into a second page. ``origin``: trace and TLB.
    """

    trace: str
    geometry: str
    pages: str
    sample: float
    accesses: int
    flushes: int
    invalidations: int
    seconds: float
    curves: tuple[Curve, ...]
    origin: Origin = UNKNOWN

    @checked
    def curve(self, unit: str, sets: int = 1) -> Curve:
        """The curve of a unit with so many sets; 1: fully associative.

        :raises ConfigError: there is none.
        """
        for found in self.curves:
            if (found.unit, found.sets) == (unit, sets):
                return found
        there = ", ".join(f"{found.unit}/{found.sets}" for found in self.curves)
        raise ConfigError(f"no curve of {unit} with {sets} sets; there are (unit/sets) {there}")

    @checked
    def misses(self, unit: str, array: str | Array) -> tuple[float, float]:
        """(misses, their standard error) of a unit whose array is given as ``"1536/12"`` or ``"64/fa"``."""
        found = parse_array(array) if isinstance(array, str) else array
        return self.curve(unit, found.sets).at(found.entries)


@checked
def tlb_curve(
    trace: AnyTrace,
    tlb: str | Geometry = "skylake",
    *,
    pages: str = "4k",
    pcid: bool = False,
    sample: float = 1.0,
    l1_sets: Sequence[int] = L1_SETS,
    l2_sets: Sequence[int] = L2_SETS,
    ways: int = 32,
    limit: int = 1 << 17,
    progress: Callable[[int], None] | None = None,
    jobs: int | None = None,
    executor: str | Any = None,
    parts: int | None = None,
) -> Curves:
    """The curves of a trace.

    :param tlb: its first level decides what the second sees. :param pages: "4k", or "2m": every page is 2 MB.
    :param sample: share of the pages that the fully associative curves are made of, above 0, at most 1.
    :param l1_sets, l2_sets: numbers of sets of the set-associative curves. :param ways: up to so many ways each.
    :param limit: up to so many entries of the fully associative ones; memory grows with it and with the pages.
    :param progress: called after each batch with the number of events done.
    :param jobs: threads, None: one a processor. No figure depends on it, nor on `executor` and `parts`.
    :param executor: where parts of the trace are counted, as of :meth:`fastmmu.Study.run`; each worker opens the trace
        and reads its part; a trace in memory is given to them. None: threads, which share one pass over the trace.
    :param parts: into how many parts it is cut; None: two a thread, or worker.
    :raises ConfigError: a geometry without LRU or without such pages, a number that is none.
    :raises TraceError: the trace cannot be read.
    """
    g = geometry(tlb)
    pages = page_size(pages)
    if pages not in SHIFT:
        raise ConfigError(f"pages {pages!r}: choose 4k or 2m")
    if g.replacement != ("lru", "lru"):
        raise ConfigError(f"TLB {g.name!r} replaces by {g.replacement}; curves from one pass exist for LRU only")
    if not 0 < sample <= 1:
        raise ConfigError(f"sample={sample} is not above 0 and at most 1")
    if not 1 <= limit <= 1 << 26 or not 1 <= ways <= 1 << 12:
        raise ConfigError(f"limit={limit}, ways={ways}: give 1..{1 << 26} entries and 1..{1 << 12} ways")
    if parts is not None and parts < 1:
        raise ConfigError(f"parts={parts}: give 1 part or more, or None for two a worker")
    plan = _Plan(g, pages, (tuple(l1_sets), tuple(l2_sets)), ways)
    farthest = int((limit - 1) * sample) + 1
    levels = tuple((tuple(sets), depth) for sets, depth in plan.levels)
    share = round(sample * 2**32) or 1
    numbers = Numbers(levels, tuple(plan.ports), SHIFT[pages], pcid, farthest, share)
    trace = identified(trace)
    started = time.perf_counter()
    if executor is not None:
        kernel = _on_executor(trace, numbers, executor, jobs, parts, progress)
    elif parts is not None or (workers(jobs) > 1 and (trace.total is None or trace.total >= LEAST)):
        kernel = in_threads(trace, numbers, workers(jobs), _events(trace, workers(jobs), parts), progress)
    else:
        kernel = _one_pass(trace, numbers, jobs, progress)
    counts = kernel.counts()
    return Curves(
        trace=trace.name,
        geometry=g.name,
        pages=pages,
        sample=sample,
        accesses=counts["accesses"],
        flushes=counts["flushes"],
        invalidations=counts["invalidations"],
        curves=tuple(_curves(kernel, plan, sample, limit)),
        seconds=time.perf_counter() - started,
        origin=trace.origin(geometry=str(g)),
    )


def _one_pass(
    trace: Identified, numbers: Numbers, jobs: int | None, progress: Callable[[int], None] | None
) -> StackDistances:
    kernel = numbers.distances()

    def lane() -> Lane[None]:
        while (batch := (yield False)) is not None:
            kernel.feed(batch.op, batch.size, batch.addr)

    if in_memory(trace):  # there is nothing to read in another thread
        events = 0
        for batch in trace.batches():
            kernel.feed(batch.op, batch.size, batch.addr)
            events += len(batch)
            if progress is not None:
                progress(events)
        return kernel
    told = None if progress is None else lambda _, events: progress(events)
    for _ in in_lanes([lane], trace.batches(), jobs=jobs, size=block_bytes(trace), progress=told):
        pass
    return kernel


def _events(trace: Identified, threads: int, parts: int | None) -> int:
    """Events of a part."""
    if trace.total is None:
        return STREAMED
    fair = -(-trace.total // (parts or 2 * threads)) or 1
    return fair if in_memory(trace) or parts is not None else min(fair, STREAMED)


def _on_executor(
    trace: Identified,
    numbers: Numbers,
    executor: str | Any,
    jobs: int | None,
    parts: int | None,
    progress: Callable[[int], None] | None,
) -> StackDistances:
    inner = trace.inner
    named = inner.path is not None and type(inner).__name__ not in ("DataOnly", "Head", "Skip")
    spec = TraceSpec(placed(str(inner.path)), inner.format) if named and not inner.in_memory else GivenTrace(inner)
    total = trace.total
    if total is None:
        total = sum(len(batch) for batch in trace.batches())
    with opened(executor, jobs) as pool:
        return on_executor(spec, total, numbers, pool, min(parts or 2 * pool.at_once, total) or 1, progress)


class _Plan:
    """Which levels there are, and which way the accesses go."""

    def __init__(self, g: Geometry, pages: str, sets: tuple[tuple[int, ...], tuple[int, ...]], ways: int) -> None:
        arrays = {"l1d": g.l1d, "l1s": g.l1s, "l1i": g.l1i, "l2": g.l2, "l2i": g.l2i}
        chosen = {unit: next((a for a in arrays[unit] if pages in a.sizes), None) for unit in UNITS}
        for unit in ("l1d", "l1s", "l1i"):
            if chosen[unit] is None and arrays[unit]:
                raise ConfigError(f"TLB {g.name!r}: its {unit} holds no {pages} pages; choose another preset")
        self.units = [unit for unit in UNITS if chosen[unit]]
        self.levels: list[tuple[list[int], int]] = []
        for unit in self.units:
            array = chosen[unit]
            assert array is not None
            numbers = sorted({*sets[unit.startswith("l2")], array.sets} - {1})
            if array.sets == 1:
                numbers.insert(0, 1)
            self.levels.append((numbers, max(ways, array.ways)))
        second = "l2" if chosen["l2"] else None
        fetches = "l2i" if chosen["l2i"] else second if g.l2_fetches else None
        stores = "l1s" if chosen["l1s"] else "l1d"
        self.ports = [self._port(unit, chosen[unit], below) for unit, below in (
            ("l1d", second), (stores, second), (stores, second), ("l1i", fetches)
        )]  # fmt: skip

    def _port(self, unit: str, array: Array | None, second: str | None) -> tuple[int, int, int, int | None]:
        assert array is not None
        level = self.units.index(unit)
        number = self.levels[level][0].index(array.sets)
        return level, number, array.ways, None if second is None else self.units.index(second)


def _curves(kernel: StackDistances, plan: _Plan, sample: float, limit: int) -> Iterator[Curve]:
    for level, unit in enumerate(plan.units):
        lookups, pages = kernel.lookups(level), kernel.pages(level)
        entries, misses, error = _fully(kernel.of_tree(level), sample, limit)
        yield Curve(unit, 1, lookups, entries, np.minimum(misses, lookups), error, sample, pages)
        for number, sets in enumerate(plan.levels[level][0]):
            if sets > 1:
                hits = np.cumsum(kernel.of_list(level, number)[:-1])
                entries = sets * np.arange(1, len(hits) + 1, dtype=np.int64)
                misses = (lookups - hits).astype(np.float64)
                yield Curve(unit, sets, lookups, entries, misses, np.zeros(len(hits)), 1.0, pages)


def _fully(
    counts: npt.NDArray[np.int64], sample: float, limit: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """By group: misses at sampled distance d are those farther; a sampled distance d stands for (d - 1)/sample + 1."""
    kept = np.union1d(np.flatnonzero(counts[:, 1:].any(axis=0)) + 1, [1])
    by_group = counts.sum(axis=1)[:, None] - np.cumsum(counts[:, 1:], axis=1)[:, kept - 1]
    entries = np.ceil((kept - 1) / sample).astype(np.int64) + 1
    by_group, entries = by_group[:, entries <= limit], entries[entries <= limit]
    misses = by_group.sum(axis=0) / sample
    return entries, misses, np.zeros(len(misses)) if sample == 1 else _error(entries, misses, by_group, sample)


def _error(
    entries: npt.NDArray[np.int64],
    misses: npt.NDArray[np.float64],
    by_group: npt.NDArray[np.int64],
    sample: float,
) -> npt.NDArray[np.float64]:
    """Of which pages were drawn (jackknife over the groups), and of how many of those between two uses were."""
    groups = len(by_group)
    drawn = np.sqrt(groups * by_group.var(axis=0, ddof=1) * (1 - sample)) / sample
    spread = np.sqrt(entries * (1 - sample) / sample)
    low = np.interp(entries - spread, entries, misses)
    high = np.interp(entries + spread, entries, misses)
    error: npt.NDArray[np.float64] = np.hypot(drawn, (low - high) / 2)
    return error
