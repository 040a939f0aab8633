"""A row of a sweep's results: the same columns, of the same types, whatever was run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastmmu.counters import APIC, CAUSES, COUNTERS
from fastmmu.exits import ExitReason
from fastmmu.machine.cache_result import CAUSES as CACHE_CAUSES
from fastmmu.machine.costs import CLASSES
from fastmmu.machine.rates import PKI, structures
from fastmmu.machine.result import Result
from fastmmu.report.latency import WALK_FIGURES, walk_figures
from fastmmu.report.rows import rates
from fastmmu.report.stored import SIZES, config_types
from fastmmu.sizes import parse_bytes

__all__ = ["columns", "row_of"]

_REASONS = tuple(reason.name.lower() for reason in ExitReason)
_KINDS = tuple(dict.fromkeys([name for names in CLASSES.values() for name in names] + list(_REASONS)))
_BEFORE = {
    "key": "string", "study": "string", "trace": "string", "path": "string", "content": "string", "scheme": "string",
}  # fmt: skip
_MADE = {"geometry": "string", "cost_model": "string", "costs": "string", "complete": "bool", "first": "int64"}
_PLAIN = tuple(row.name for row in COUNTERS if row.name != "exits_by_reason")
_OPTIONAL = (*(row.name for row in APIC), "instructions", *WALK_FIGURES)
_RATES = (
    *(f"mpki_{name}" for name in structures()), *(f"{name}_pki" for name in PKI), "walk_share", "overlap",
    "fetch_cycles",
)  # fmt: skip
_AFTER = {
    "cache_counts": "string", "cycles_per_access": "double", "mpki": "double", **dict.fromkeys(_RATES, "double"),
    "notes": "string", "seconds": "double", "seed": "int64", "fastmmu": "string", "host": "string",
}  # fmt: skip


_CONFIG = config_types()


def columns() -> dict[str, str]:
    """Name of each column → its type in Arrow's words."""
    return {
        **_BEFORE,
        **_CONFIG,
        **_MADE,
        **dict.fromkeys(_PLAIN, "int64"),
        **dict.fromkeys(_OPTIONAL, "int64"),
        **{f"exits_{name}": "int64" for name in (*_REASONS, "other")},
        "cycles": "double",
        **{f"cycles_{cause}": "double" for cause in (*CAUSES, *CACHE_CAUSES)},
        **{f"cycles_exit_{kind}": "double" for kind in (*_KINDS, "other")},
        **_AFTER,
    }


def row_of(result: Result, made: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a run; `made`: what the run itself does not know, by the names of columns.

    Counters of a local APIC are None without one, instructions where the trace does not count them, figures of walks
    (:func:`fastmmu.report.latency.walk_figures`) without data caches.
    """
    config = result.config.fields()
    config |= {name: None if config[name] is None else parse_bytes(config[name]) for name in SIZES}
    config["tlb"] = result.config.tlb_name
    exits = dict(result.counters.get("exits_by_reason", {}))
    cycles = dict(result.cycles_by)
    found: dict[str, Any] = {
        **result.origin.columns(),
        "scheme": result.config.name,
        **config,
        "geometry": result.geometry,
        "costs": result.costs,
        "complete": result.complete,
        "first": result.first,
        **{name: result.counters[name] for name in _PLAIN},
        **{name: result.counters.get(name) for name in _OPTIONAL},
        **walk_figures(result),
        **{f"exits_{name}": exits.pop(name, 0) for name in _REASONS},
        "exits_other": sum(exits.values()),
        "cycles": result.cycles,
        **{f"cycles_{cause}": cycles.pop(cause, 0.0) for cause in (*CAUSES, *CACHE_CAUSES)},
        **{f"cycles_exit_{kind}": cycles.pop(f"exit:{kind}", 0.0) for kind in _KINDS},
        "cycles_exit_other": sum(cycles.values()),
        "cache_counts": None if result.caches is None else json.dumps(result.caches.counts()),
        "cycles_per_access": result.cycles_per_access,
        "mpki": result.mpki,
        **rates(result),
        "notes": "; ".join(result.notes),
        "seconds": result.seconds,
        **made,
    }
    return {name: found[name] for name in columns()}
