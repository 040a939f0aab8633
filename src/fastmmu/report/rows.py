"""Results as flat rows: one dict of numbers and strings a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from fastmmu.machine.config import Config
from fastmmu.machine.result import Result

__all__ = ["baseline", "rows", "slowdowns"]


def _without_vmm(config: Config) -> Config:
    return config.replace(mmu="native", vpid=False, host_pages=None)


def baseline(result: Result, results: Sequence[Result]) -> Result | None:
    """The native run of `results` with the trace, the pages and all other settings of `result`."""
    wanted = _without_vmm(result.config)
    for other in results:
        if other.config.mmu == "native" and other.trace == result.trace and _without_vmm(other.config) == wanted:
            return other
    return None


def slowdowns(results: Sequence[Result]) -> list[float | None]:
    """Modelled cycles per access over those of the native run with the same pages.

    None where there is no such run, or one of the two was interrupted: a trace is not the same at its start and later.
    """
    return [_slowdown(result, baseline(result, results)) for result in results]


def _slowdown(result: Result, native: Result | None) -> float | None:
    if native is None or not native.cycles_per_access or not (result.complete and native.complete):
        return None
    return result.cycles_per_access / native.cycles_per_access


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One flat dict a result, all with the same keys in the same order.

    Keys: ``trace``, ``scheme``, the fields of :class:`Config` (``memory`` in bytes), ``complete``, the counters,
    ``exits_REASON``, ``cycles``, ``cycles_CAUSE``, ``cycles_per_access``, ``slowdown`` (None without a native run),
    ``seconds``, ``accesses_per_second``, ``notes``. A counter, reason or cause that only other runs have is 0.
    """
    parts = [_sections(result, slowdown) for result, slowdown in zip(results, slowdowns(results), strict=True)]
    keys = [list(dict.fromkeys(key for section in same for key in section)) for same in zip(*parts, strict=True)]
    return [
        {key: section.get(key, 0) for section, names in zip(sections, keys, strict=True) for key in names}
        for sections in parts
    ]


def _sections(result: Result, slowdown: float | None) -> list[dict[str, Any]]:
    plain = {name: value for name, value in result.counters.items() if not isinstance(value, dict)}
    return [
        {"trace": result.trace, "scheme": result.config.name},
        {**msgspec.to_builtins(result.config), "memory": result.config.memory_bytes},
        {"complete": result.complete},
        plain,
        {f"exits_{name}": number for name, number in result.counters.get("exits_by_reason", {}).items()},
        {"cycles": result.cycles},
        {f"cycles_{cause.replace(':', '_')}": value for cause, value in result.cycles_by.items()},
        {
            "cycles_per_access": result.cycles_per_access,
            "slowdown": slowdown,
            "seconds": result.seconds,
            "accesses_per_second": result.accesses_per_second,
            "notes": "; ".join(result.notes),
        },
    ]
