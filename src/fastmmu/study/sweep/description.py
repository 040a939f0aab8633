"""`study.toml`, read and checked whole: which traces, configurations and cost models.

name = "tlb-sizes"
checkpoint-every = "100m"                 events after which a run keeps how far it came; default: never
[traces]                                  name = file, URL or bundled trace, or a table
sqlite = "sqlite"
app = { path = "app.arrow", limit = "10M", data_only = true, warm_up = "1M" }
[config]                                  fields of all configurations
memory = "8G"
[grid]                                    every combination; [[grid]] for several grids
mmu = ["shadow", "ept"]
vpid = [false, true]
[[configs]]                               one configuration each
mmu = "native"
[[exclude]]                               combinations to leave out
mmu = "shadow"
stlb = "2048/16"
[costs]                                   cost models; default: fastmmu's own
prescott = { generation = "prescott" }
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fastmmu.cli.options import count
from fastmmu.cli.vmm import vmm_of
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.config_fields import refused_alone
from fastmmu.machine.costs import CostModel
from fastmmu.machine.wholly import read_whole
from fastmmu.study.sweep.work import TraceSpec, placed

__all__ = ["Description", "read_description"]

KEYS = ("name", "results", "seed", "traces", "config", "grid", "configs", "exclude", "costs", "checkpoint-every")
_FIELDS = tuple(Config.__struct_fields__)


class _Trace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: str
    format: str | None = None
    columns: str | None = None
    limit: int | str | None = None
    data_only: bool = False
    warm_up: int | str = 0


class _Costs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    file: str | None = None
    generation: str | None = None


@dataclass(frozen=True)
class Description:
    """What a study runs: each trace under each configuration, at the prices of each cost model."""

    name: str
    traces: Mapping[str, TraceSpec]
    configs: tuple[Config, ...]
    costs: Mapping[str, CostModel]
    results: str
    seed: int = 0
    checkpoint_every: int | None = None
    text: str = field(default="", compare=False)


def read_description(path: str | os.PathLike[str]) -> Description:
    """A study file.

    :raises ConfigError: it is no TOML, or a key or value is none: names file, key, value and what there is.
    :raises OSError: it cannot be read.
    """
    file = Path(path)
    text = read_whole(path)
    try:
        whole = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: no TOML: {error}") from error
    try:
        return _described(whole, file, text.decode())
    except _Refused as error:
        raise ConfigError(f"{file}: {error}") from error


class _Refused(Exception):
    """What is wrong at which key."""


def _described(whole: dict[str, Any], file: Path, text: str) -> Description:
    _known(whole, KEYS, "")
    name = _of_type(whole.get("name", file.stem), str, "name")
    seed = _of_type(whole.get("seed", 0), int, "seed")
    results = _of_type(whole.get("results", f"{file.stem}.results"), str, "results")
    traces = _table(whole.get("traces"), "traces")
    if not traces:
        raise _Refused('traces: name at least one, as in [traces] sqlite = "sqlite"')
    costs = _table(whole.get("costs", {}), "costs") or {"default": {}}
    return Description(
        name=name,
        traces={name: _trace(value, f"traces.{name}", file.parent) for name, value in traces.items()},
        configs=tuple(_configs(whole)),
        costs={name: _cost_model(value, f"costs.{name}", file.parent) for name, value in costs.items()},
        results=str(file.parent / results),
        seed=seed,
        checkpoint_every=_every(whole.get("checkpoint-every")),
        text=text,
    )


def _every(value: Any) -> int | None:
    if value is None:
        return None
    try:
        return count(1)(str(value))
    except argparse.ArgumentTypeError as error:
        raise _Refused(f"checkpoint-every = {_toml(value)}: {error}") from error


# ---- configurations ----------------------------------------------------------------------------------------------


def _configs(whole: dict[str, Any]) -> list[Config]:
    base = _fields(whole.get("config", {}), "config")
    excluded = [_fields(each, f"exclude[{i}]") for i, each in enumerate(_tables(whole.get("exclude", []), "exclude"))]
    grids = whole.get("grid", [])
    found: dict[Config, None] = {}
    for key, fields in itertools.chain(_of_grids(grids), _of_configs(whole.get("configs", []))):
        if not any(all(fields.get(name, base.get(name)) == value for name, value in out.items()) for out in excluded):
            found[_config({**base, **fields}, key)] = None
    if not found and not grids and "configs" not in whole:
        found[_config(base, "config")] = None
    if not found:
        raise _Refused("exclude: leaves no configuration; there must be one")
    return list(found)


def _of_grids(grids: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, table in enumerate(_tables(grids, "grid")):
        yield from _grid(table, "grid" if isinstance(grids, dict) else f"grid[{i}]")


def _of_configs(configs: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, table in enumerate(_tables(configs, "configs")):
        yield f"configs[{i}]", _fields(table, f"configs[{i}]")


def _grid(table: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, values in table.items():
        _known({name: 0}, _FIELDS, key)
        if not isinstance(values, list) or not values:
            raise _Refused(f"{key}.{name} = {values!r}: give a list of values, as in [{_toml(values)}]")
    checked = {name: [_field(name, value, f"{key}.{name}") for value in values] for name, values in table.items()}
    for combination in itertools.product(*checked.values()):
        yield key, dict(zip(checked, combination, strict=True))


def _fields(table: Any, key: str) -> dict[str, Any]:
    found = _table(table, key)
    _known(found, _FIELDS, key)
    return {name: _field(name, value, f"{key}.{name}") for name, value in found.items()}


def _field(name: str, value: Any, key: str) -> Any:
    """The value, where its field takes it; what depends on others is found out with all of them."""
    try:
        if name == "vmm" and isinstance(value, str):
            return vmm_of(value)
    except ConfigError as error:
        raise _Refused(f"{key} = {_toml(value)}: {error}") from error
    if (said := refused_alone(name, value)) is not None:
        raise _Refused(f"{key} = {_toml(value)}: {said}")
    return value


def _config(fields: dict[str, Any], key: str) -> Config:
    try:
        return Config(**fields)
    except ConfigError as error:
        chosen = ", ".join(f"{name} = {_toml(value)}" for name, value in fields.items())
        said = str(error).removeprefix("Config: ")
        raise _Refused(f"{key}: {said} (with {chosen}; [[exclude]] leaves combinations out)") from error


# ---- traces, costs -----------------------------------------------------------------------------------------------


def _trace(value: Any, key: str, folder: Path) -> TraceSpec:
    given = {"path": value} if isinstance(value, str) else value
    table = _converted(given, _Trace, key)
    limit = None if table.limit is None else _count(table.limit, 1, f"{key}.limit")
    warm_up = _count(table.warm_up, 0, f"{key}.warm_up")
    here = str(folder / table.path)
    path = placed(here) if "://" not in table.path and os.path.exists(here) else table.path
    return TraceSpec(path, table.format, table.columns, limit, table.data_only, warm_up)


def _count(value: Any, least: int, key: str) -> int:
    try:
        return count(least)(str(value))
    except Exception as error:
        raise _Refused(f"{key} = {_toml(value)}: {error}") from error


def _cost_model(value: Any, key: str, folder: Path) -> CostModel:
    table = _converted(value, _Costs, key)
    try:
        return CostModel.load(None if table.file is None else folder / table.file, generation=table.generation)
    except (ConfigError, OSError) as error:
        raise _Refused(f"{key}: {error}") from error


# ---- checks ------------------------------------------------------------------------------------------------------


def _converted(value: Any, to: Any, key: str) -> Any:
    table = _table(value, key)
    _known(table, to.__struct_fields__, key)
    try:
        return msgspec.convert(table, to)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$.")
        raise _Refused(f"{key}.{place.rstrip('`')}: {said}" if place else f"{key}: {said}") from error


def _known(table: Mapping[str, Any], known: Iterable[str], key: str) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise _Refused(f"{key + '.' if key else ''}{name}: no such key; {hint}")


def _table(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Refused(f"{key}: a table is missing, as in [{key}]" if value is None else f"{key} = {value!r}: no table")
    return value


def _tables(value: Any, key: str) -> list[dict[str, Any]]:
    tables = [value] if isinstance(value, dict) else _of_type(value, list, key)
    return [_table(each, f"{key}[{i}]") for i, each in enumerate(tables)]


def _of_type(value: Any, kind: type, key: str) -> Any:
    if type(value) is not kind:
        raise _Refused(f"{key} = {_toml(value)}: expected {_SAID[kind]}")
    return value


_SAID = {str: "a text", int: "a whole number", list: "a list of tables"}


def _toml(value: Any) -> str:
    """As TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return '"' + value + '"' if isinstance(value, str) else str(value)
