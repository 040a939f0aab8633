"""Results that lie in files, as they were: what `report.files` and a sweep write, read back."""

from __future__ import annotations

import csv
import json
import os
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastmmu._checked import checked
from fastmmu.counters import APIC, COUNTERS
from fastmmu.errors import ConfigError
from fastmmu.machine.cache_result import CacheResult
from fastmmu.machine.config import Config
from fastmmu.machine.result import Result
from fastmmu.machine.wholly import read_whole
from fastmmu.report.files import arrow, parquet_table
from fastmmu.report.words import known_causes

__all__ = ["config_types", "load", "made_with"]

SIZES = ("memory", "host_memory")
"""Fields of a configuration that stand in files as bytes."""

_COUNTED = (*(row.name for row in COUNTERS if row.name != "exits_by_reason"), *(row.name for row in APIC),
            "instructions")  # fmt: skip
_WHAT = "give what --json, --csv or --parquet of `compare` or `run` wrote, or the folder of a sweep"


def config_types() -> dict[str, str]:
    """Each field of a configuration → its type in a file, in Arrow's words."""
    hints = get_type_hints(Config)
    return {name: _type(name, hints[name]) for name in Config.__struct_fields__}


def _type(name: str, hint: Any) -> str:
    if name in SIZES:
        return "int64"
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = {type(get_args(part)[0]) if get_origin(part) is Literal else part for part in parts} - {type(None)}
    if name in ("tlb", "vmm") or str in kinds:
        return "string"
    return "bool" if bool in kinds else "int64" if int in kinds else "double" if float in kinds else "string"


@checked
def load(path: str | os.PathLike[str]) -> list[Result]:
    """The results in a file (.json, .csv, .parquet) that a command or :func:`fastmmu.report.save` wrote, or in the
    folder of a sweep.

    A VMM of the caller's own, and arrays of a TLB that has no preset's name, are there by name alone: in their place
    stand ``vmm="python"`` and the default arrays; ``.geometry`` says which they were.

    :raises ConfigError: it is none. :raises OSError: it cannot be read. :raises MissingExtraError: Parquet without
        pyarrow.
    """
    rows = list(_rows(Path(path)))
    if not rows:
        raise ConfigError(f"{path}: there is no result in it; {_WHAT}")
    try:
        return [_of_json(row) if "config" in row else _of_row(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: no results of runs ({type(error).__name__}: {error}); {_WHAT}") from error


def made_with(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """What a file says of how it was made: versions of fastmmu, and command lines, each once."""
    found: dict[str, list[str]] = {"fastmmu": [], "command": []}
    for row in _rows(Path(path)):
        for name, values in found.items():
            value = row.get(name)
            if value and str(value) not in values:
                values.append(str(value))
    return found


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    if path.is_dir():
        files = sorted((path / "runs" if (path / "runs").is_dir() else path).glob("*.parquet"))
        rows = [row for file in files for row in _parquet(file)]
        fields = list(Config.__struct_fields__)
        return sorted(
            rows,
            key=lambda row: (
                str(row.get("trace")),
                _MMUS.get(str(row.get("mmu")), 9),
                [_natural(str(row.get(name))) for name in fields],
                str(row.get("costs")),
            ),
        )
    if path.suffix == ".parquet":
        return _parquet(path)
    text = read_whole(path).decode("utf-8", "backslashreplace")
    if path.suffix != ".json":
        return list(csv.DictReader(text.splitlines()))
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: no JSON: {error}") from error
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, list) or not all(isinstance(row, dict) for row in results):
        raise ConfigError(f"{path}: it has no list of results; {_WHAT}")
    made = {name: found.get(name, "") for name in ("fastmmu", "command")}
    return [{**made, **row} for row in results]


def _natural(text: str) -> list[tuple[int, str]]:
    """By which 512/4 comes before 1024/8."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.findall(r"\d+|\D+", text)]


_MMUS = {"native": 0, "shadow": 1, "ept": 2, "agile": 3}


def _parquet(path: Path) -> list[Mapping[str, Any]]:
    pyarrow = arrow()
    try:
        found: list[Mapping[str, Any]] = parquet_table(read_whole(path)).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{path}: no Parquet file: {error}") from error
    return found


# ---- one result --------------------------------------------------------------------------------------------------


def _of_json(row: Mapping[str, Any]) -> Result:
    texts: dict[str, Any] = {
        name: str(row.get(name, "")) for name in ("trace", "path", "content", "costs", "geometry", "policy")
    }
    return Result(
        config=_config(row["config"]),
        counters=dict(row["counters"]),
        cycles=float(row["cycles"]),
        cycles_by={cause: float(value) for cause, value in row["cycles_by"].items()},
        seconds=float(row["seconds"]),
        complete=bool(row["complete"]),
        first=int(row.get("first", 0)),
        notes=tuple(row["notes"]),
        tlb=dict(row.get("tlb", {})),
        **_rates(row),
        caches=CacheResult.of_dict(row["caches"]) if row.get("caches") else None,
        **texts,
    )


def _of_row(row: Mapping[str, Any]) -> Result:
    kinds = config_types()
    config = {name: _value(row[name], kinds[name]) for name in kinds if name in row}
    counters: dict[str, Any] = {
        name: int(row[name]) for name in _COUNTED if name in row and row[name] not in (None, "")
    }
    exits = {name.removeprefix("exits_"): int(row[name]) for name in row if name.startswith("exits_")}
    counters["exits_by_reason"] = {reason: n for reason, n in exits.items() if n}
    causes = {cause: float(row[f"cycles_{cause.replace(':', '_')}"] or 0) for cause in known_causes()
              if f"cycles_{cause.replace(':', '_')}" in row}  # fmt: skip
    texts: dict[str, Any] = {
        name: str(row.get(name) or "") for name in ("trace", "path", "content", "costs", "geometry", "policy")
    }
    return Result(
        config=_config(config),
        counters=counters,
        cycles=float(row["cycles"]),
        cycles_by={cause: value for cause, value in causes.items() if value},
        seconds=float(row["seconds"]),
        complete=_value(row["complete"], "bool"),
        first=int(row.get("first") or 0),
        notes=tuple(part for part in str(row.get("notes") or "").split("; ") if part),
        **_rates(row),
        caches=_caches(row),
        **texts,
    )


def _rates(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the estimated share of walks is made with; files of older versions have none."""
    return {name: float(row.get(name) or 0) for name in ("overlap", "fetch_cycles")}


def _caches(row: Mapping[str, Any]) -> CacheResult | None:
    """What the data caches came to, of the columns of a row; of a sweep, of a text."""
    if not row.get("caches"):
        return None
    found = json.loads(row["cache_counts"]) if row.get("cache_counts") else None
    if found is None:
        found = {name.removeprefix("cache_"): n for name, n in row.items() if name.startswith("cache_")}
    return CacheResult.of_counts({name: int(n or 0) for name, n in found.items()})


def _value(value: Any, kind: str) -> Any:
    """Of a CSV file a text, else what it is."""
    if not isinstance(value, str):
        return value
    if value == "":
        return None
    if kind == "bool":
        return value == "True"
    return int(value) if kind == "int64" else float(value) if kind == "double" else value


def _config(fields: Mapping[str, Any]) -> Config:
    known = {name: value for name, value in fields.items() if name in Config.__struct_fields__}
    known["vmm"] = "kernel" if known.get("vmm", "kernel") == "kernel" else "python"
    if isinstance(known.get("replacement"), str) and "," in known["replacement"]:
        del known["replacement"]  # of both levels, as its geometry has it
    try:
        return Config(**known)
    except ConfigError:
        return Config(**{name: value for name, value in known.items() if name not in _ARRAYS})


_ARRAYS = ("tlb", "l1d", "l1i", "stlb", "replacement", "psc", "epsc", "gpm", "caches")
