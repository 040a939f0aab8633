"""Results as flat rows: one dict of numbers and strings a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from fastmmu._checked import checked
from fastmmu.machine.cache_result import caches_sum
from fastmmu.machine.identity import Origin
from fastmmu.machine.rates import PKI, structures
from fastmmu.machine.result import Result
from fastmmu.machine.series import AT_END

__all__ = [
    "baseline", "by_trace", "gathered", "of_one_run", "over_time", "rates", "rows", "several_versions", "slowdowns",
]  # fmt: skip

_PRESET: dict[str, Any] = {
    "tlb": "skylake",
    "l1d": None,
    "l1i": None,
    "stlb": None,
    "replacement": None,
    "psc": None,
    "epsc": None,
    "gpm": None,
    "walk_caches": True,
    "find_missing_flushes": False,
}
"""Fields that the arrays of the TLB say better."""


def of_one_run(result: Result) -> tuple[object, ...]:
    """Equal for results that may be set against each other: the events by their content, where what is counted begins,
    the costs, and the machine but for its VMM, with the TLB by its arrays, whatever they were called."""
    native = result.config.native
    return (*result.origin.run_of, result.first, str(native.geometry), native.replace(**_PRESET))


@checked
def over_time(results: Sequence[Result]) -> list[Result]:
    """A result for each row of a result's ``series``, in its place; others as they are.

    ``first`` says how many accesses there were before; ``seconds`` are 0, and what the TLB did is not told.
    """
    return [part for result in results for part in ([result] if result.series is None else _parts(result))]


def _parts(result: Result) -> Iterator[Result]:
    assert result.series is not None
    first = result.series.first
    each = zip(result.series.rows(), result.series.cycles(), result.series.caches(), strict=True)
    for counters, by_cause, caches in each:
        sums: dict[str, Any] = {"cycles": float(sum(by_cause.values())), "cycles_by": by_cause, "caches": caches}
        more: dict[str, Any] = {"seconds": 0.0, "tlb": {}, "exit_log": None, "series": None}
        yield replace(result, counters=counters, first=first, **sums, **more)
        first += counters["accesses"]


@checked
def gathered(results: Sequence[Result]) -> list[tuple[Result, list[Result]]]:
    """Each run with what it came to over time: the inverse of :func:`over_time`, also of results from files. A run of
    which nothing is known over time has itself.

    Of results one after the other each that begins where the one before ends goes with that one: events, configuration
    and costs alike. Counters and cycles of the whole are sums; what its TLB did is not known.
    """
    runs: list[list[Result]] = []
    for result in results:
        before = runs[-1][-1] if runs else None
        if result.series is None and before is not None and before.series is None and _follows(result, before):
            runs[-1].append(result)
        else:
            runs.append([result])
    return [_gathered(run) for run in runs]


def _follows(result: Result, before: Result) -> bool:
    return (
        result.first == before.first + before.counters["accesses"]
        and result.origin == before.origin
        and result.config == before.config
    )


def _gathered(run: list[Result]) -> tuple[Result, list[Result]]:
    if len(run) == 1:
        return run[0], over_time(run)
    counters: dict[str, Any] = {}
    cycles_by: dict[str, float] = {}
    for part in run:
        for name, value in part.counters.items():
            if isinstance(value, dict):
                sums = counters.setdefault(name, {})
                sums.update({key: sums.get(key, 0) + n for key, n in value.items()})
            else:
                counters[name] = value if name in AT_END else counters.get(name, 0) + value
        for cause, value in part.cycles_by.items():
            cycles_by[cause] = cycles_by.get(cause, 0.0) + value
    whole: dict[str, Any] = {
        "counters": counters,
        "cycles_by": cycles_by,
        "cycles": float(sum(part.cycles for part in run)),
        "caches": caches_sum([part.caches for part in run]),
    }
    seconds, complete = sum(part.seconds for part in run), all(part.complete for part in run)
    return replace(run[0], seconds=seconds, complete=complete, **whole), run


class Figure(Protocol):
    """What a study found out about a trace."""

    @property
    def trace(self) -> str: ...
    @property
    def origin(self) -> Origin: ...


F = TypeVar("F", bound=Figure)


def by_trace(found: Sequence[F]) -> list[list[F]]:
    """Figures of a study by what they were made of: a table has those of one trace."""
    groups: dict[tuple[str, Origin], list[F]] = {}
    for one in found:
        groups.setdefault((one.trace, one.origin), []).append(one)
    return list(groups.values())


def baseline(result: Result, results: Sequence[Result]) -> Result | None:
    """The native run of `results` with the events, costs, pages and all other settings of `result`.

    Events go by their content, whatever name or file the trace has, so that results of several traces may stand in one
    list. One that was interrupted is taken only where there is no other.
    """
    if result.config.mmu == "native":
        return result
    wanted = of_one_run(result)
    found = [other for other in results if other.config.mmu == "native" and of_one_run(other) == wanted]
    return next((other for other in found if other.complete), found[0] if found else None)


def several_versions(results: Sequence[Result]) -> bool:
    """The runs are of more than one version of KVM; a native run has none."""
    return len({result.config.kvm for result in results if result.config.mmu != "native"}) > 1


@checked
def slowdowns(results: Sequence[Result]) -> list[float | None]:
    """Modelled cycles per access over those of the native run with the same pages.

    None where there is no native run of the same events at the same costs, or one of the two was interrupted: a trace
    is not the same at its start and later.
    """
    return [_slowdown(result, baseline(result, results)) for result in results]


def _slowdown(result: Result, native: Result | None) -> float | None:
    if native is None or not native.cycles_per_access or not (result.complete and native.complete):
        return None
    return result.cycles_per_access / native.cycles_per_access


@checked
def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One flat dict a result, all with the same keys in the same order.

    Keys: ``trace``, ``path``, ``content`` (hash of the events), ``scheme``, the fields of :class:`Config` (``tlb`` by
    name, ``memory`` in bytes), ``geometry`` (the TLB's arrays), ``costs`` (identity of the cost model), ``policy``,
    ``complete``, ``first`` (accesses before those that are counted), the counters, ``exits_REASON``, ``cycles``,
    ``cycles_CAUSE``, ``cycles_per_access``, ``mpki`` (TLB misses per thousand instructions, None where they are not
    counted), by structure ``mpki_l1d``, ..., ``mpki_gpm``, per thousand instructions ``walks_pki``,
    ``walk_refs_pki``, ``walk_cycles_pki``, ``vm_exits_pki``, and ``walk_share``, with ``overlap`` and ``fetch_cycles``,
    which it is made with (:class:`~fastmmu.machine.result.Result`), with data caches ``cache_CAUSE_LEVEL`` and more
    (:meth:`~fastmmu.machine.cache_result.CacheResult.counts`), ``slowdown`` (None without a native run),
    ``notes``, and ``seconds``, the wall time: the one value that two runs do not share. A counter, reason or cause that
    only other runs have is 0.
    """
    parts = [_sections(result, slowdown) for result, slowdown in zip(results, slowdowns(results), strict=True)]
    keys = [list(dict.fromkeys(key for section in same for key in section)) for same in zip(*parts, strict=True)]
    return [
        {key: section.get(key, 0) for section, names in zip(sections, keys, strict=True) for key in names}
        for sections in parts
    ]


def rates(result: Result) -> dict[str, float | None]:
    """``mpki_STRUCTURE`` of all structures, ``RATE_pki``, ``walk_share``: None where they are not known."""
    misses, many = result.mpki_by or {}, result.pki or {}
    return {
        **{f"mpki_{name}": misses.get(name) for name in structures()},
        **{f"{name}_pki": many.get(name) for name in PKI},
        "walk_share": result.walk_share,
        "overlap": result.overlap,
        "fetch_cycles": result.fetch_cycles,
    }


def _sections(result: Result, slowdown: float | None) -> list[dict[str, Any]]:
    plain = {name: value for name, value in result.counters.items() if not isinstance(value, dict)}
    arrays = result.config.geometry
    config = {
        **result.config.fields(),
        "tlb": result.config.tlb_name,
        "replacement": ",".join(dict.fromkeys(arrays.replacement)),
        "memory": result.config.memory_bytes,
    }
    return [
        {**result.origin.columns(), "scheme": result.config.name},
        config,
        {"geometry": str(arrays), "costs": result.costs, "policy": result.policy, "complete": result.complete},
        {"first": result.first},
        plain,
        {f"exits_{name}": number for name, number in result.counters.get("exits_by_reason", {}).items()},
        {"cycles": result.cycles},
        {f"cycles_{cause.replace(':', '_')}": value for cause, value in result.cycles_by.items()},
        {} if result.caches is None else {f"cache_{name}": n for name, n in result.caches.counts().items()},
        {
            "cycles_per_access": result.cycles_per_access,
            "mpki": result.mpki,
            **rates(result),
            "slowdown": slowdown,
            "notes": "; ".join(result.notes),
            "seconds": result.seconds,
        },
    ]
