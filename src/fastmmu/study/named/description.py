"""An experiment's TOML, read and checked whole before anything runs.

title, claim = "..."                        what it is about; what was published
[source]
paper, where = "..."                        year = 2008, where it is known
[traces.NAME]                               a workload: path = "sqlite", or generator = "uniform" and its figures
[config]                                    fields of all configurations
[configs.NAME]                              fields of one; tlb may be a table, as of fastmmu.geometry
[walks.NAME]                                tables that are walked (walks)
[vpid.NAME]                                 a point of the VPID study: trace, rate
[[checks]]
what = "..."                                what is set beside what was published; {} is each of `each`
ours = "sqlite.both.cycles / ..."           TRACE.CONFIG.COLUMN (of a sweep's results), WALK.FIGURE, POINT.FIGURE
unit = "gain"                               count, times, percent, gain
published = [0.15, 0.38]                    or one number; said = "..." where it is none
holds = "ours > 0"                          also of low, high, other figures. Without it nothing is asserted, and
why = "..."                                 says why: also without `ours`, of what is not modelled
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.config_fields import refused_alone
from fastmmu.machine.wholly import read_whole
from fastmmu.study.named.expression import Expression
from fastmmu.study.named.walks import FIGURES as WALK_FIGURES
from fastmmu.study.named.walks import Walks
from fastmmu.study.named.workloads import GENERATORS, File, Workload
from fastmmu.study.sweep.columns import columns
from fastmmu.tlb.geometry import geometry

__all__ = ["POINT_FIGURES", "Check", "Experiment", "Point", "Source", "experiments", "read_experiment", "titles"]

POINT_FIGURES = ("on", "off", "exits", "resident", "predicted", "refills")
_HERE = Path(__file__).parent


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where it was published."""

    paper: str
    where: str
    year: int | None = None


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the VPID study: a workload, VM exits per thousand accesses."""

    trace: str
    rate: Annotated[float, msgspec.Meta(gt=0, le=1000)]


class _Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    what: str
    each: list[str] = []
    ours: str = ""
    unit: Literal["count", "times", "percent", "gain"] = "count"
    published: float | tuple[float, float] | None = None
    said: str = ""
    holds: str = ""
    why: str = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    claim: str
    source: Source
    checks: Annotated[list[_Said], msgspec.Meta(min_length=1)]
    traces: dict[str, dict[str, Any]] = {}
    config: dict[str, Any] = {}
    configs: dict[str, dict[str, Any]] = {}
    walks: dict[str, dict[str, Any]] = {}
    vpid: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class Check:
    """One figure beside what was published. low, high: that, None where it is no number. ours None: not modelled;
    holds None: not asserted, and `why`."""

    what: str
    unit: str
    ours: Expression | None
    low: float | None
    high: float | None
    said: str
    holds: Expression | None
    why: str


@dataclass(frozen=True)
class Experiment:
    """What is run, and what must come of it."""

    name: str
    title: str
    claim: str
    source: Source
    traces: Mapping[str, Workload]
    configs: Mapping[str, Config]
    walks: Mapping[str, Walks]
    points: Mapping[str, Point]
    checks: tuple[Check, ...]


@checked
def experiments() -> dict[str, Path]:
    """Name → file of each experiment that comes with the package."""
    return {path.stem: path for path in sorted(_HERE.glob("*.toml"))}


def titles() -> list[tuple[str, str, str]]:
    """Name, title and source of each."""
    found = []
    for name, path in experiments().items():
        with open(path, "rb") as file:
            said = tomllib.load(file)
        found.append((name, str(said["title"]), str(said["source"]["where"]).partition(",")[0].partition(";")[0]))
    return found


def read_experiment(name: str) -> Experiment:
    """One by its name, or by the path of a file of its own.

    :raises ConfigError: there is none of this name; or it is no experiment, with file, key and value.
    :raises OSError: it cannot be read.
    """
    known = experiments()
    if name not in known and not name.endswith(".toml"):
        raise ConfigError(f"no experiment {name!r}; there are {', '.join(known)}; or name a file, NAME.toml")
    path = known.get(name, Path(name))
    try:
        whole = tomllib.loads(read_whole(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no TOML: {error}") from error
    try:
        return _described(path.stem, msgspec.convert(whole, _File))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_placed(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _placed(error: msgspec.ValidationError) -> str:
    said, _, place = str(error).partition(" - at `$")
    return f"{place.strip('.`')}: {said}" if place.strip(".`") else said


def _described(name: str, said: _File) -> Experiment:
    made = Experiment(
        name,
        said.title,
        said.claim,
        said.source,
        {key: _workload(f"traces.{key}", table) for key, table in said.traces.items()},
        {key: _config(f"configs.{key}", {**said.config, **table}) for key, table in said.configs.items()},
        {key: _converted(f"walks.{key}", table, Walks) for key, table in said.walks.items()},
        {key: _converted(f"vpid.{key}", table, Point) for key, table in said.vpid.items()},
        tuple(check for i, each in enumerate(said.checks) for check in _checks(f"checks[{i}]", each)),
    )
    _names_differ(made)
    for key, walks in made.walks.items():
        if why := walks.refused():
            raise ConfigError(f"walks.{key}: {why}")
    for key, point in made.points.items():
        if point.trace not in made.traces:
            raise ConfigError(f"vpid.{key}.trace = {point.trace!r}: there are {', '.join(made.traces) or 'no traces'}")
    for check in made.checks:
        for expression in (check.ours, check.holds):
            for figure in () if expression is None else expression.names:
                _known(made, check, figure)
    return made


def _workload(key: str, table: Mapping[str, Any]) -> Workload:
    given = dict(table)
    kind = given.pop("generator", None)
    if kind is not None and kind not in GENERATORS:
        raise ConfigError(f"{key}.generator = {kind!r}: choose from {', '.join(GENERATORS)}")
    made: Workload = _converted(key, given, File if kind is None else GENERATORS[kind])
    try:
        if made.tpr is not None:
            made.tpr.made()
    except ConfigError as error:
        raise ConfigError(f"{key}.tpr: {error}") from error
    return made


def _converted(key: str, table: Mapping[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{key}: {_placed(error)}") from error


def _config(key: str, table: Mapping[str, Any]) -> Config:
    fields = dict(table)
    if isinstance(fields.get("tlb"), dict):
        try:
            fields["tlb"] = geometry(**fields["tlb"])
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{key}.tlb: {error}") from error
    for name, value in fields.items():
        if name not in Config.__struct_fields__:
            raise ConfigError(f"{key}.{name}: no such field of a configuration; see help(fastmmu.Config)")
        if (why := refused_alone(name, value)) is not None:
            raise ConfigError(f"{key}.{name} = {value!r}: {why}")
    try:
        return Config(**fields)
    except ConfigError as error:
        raise ConfigError(f"{key}: {str(error).removeprefix('Config: ')}") from error


def _names_differ(made: Experiment) -> None:
    names = [*made.traces, *made.walks, *made.points]
    for name in (*names, *made.configs):
        if not name.isidentifier() or name in ("ours", "low", "high"):
            raise ConfigError(f"{name!r} names no figure; take letters, digits and _, and none of ours, low, high")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name!r} is the name of two things; give each its own")


# ---- checks ------------------------------------------------------------------------------------------------------


def _checks(key: str, said: _Said) -> Iterator[Check]:
    low, high = said.published if isinstance(said.published, tuple) else (said.published, said.published)
    if said.published is None and not said.said:
        raise ConfigError(f"{key}: what was published? Give published or said")
    if not said.holds and not said.why:
        raise ConfigError(f"{key}: asserts nothing; give holds, or why nothing is asserted")
    if said.holds and (said.why or not said.ours):
        raise ConfigError(f"{key}: holds is asserted of `ours`; `why` is of what is not asserted")
    for name in said.each or [""]:

        def filled(text: str, name: str = name) -> str:
            return text.replace("{}", name)

        what = said.what.replace("{}", name.replace("_", " "))

        try:
            ours, holds = (Expression(filled(text)) if text else None for text in (said.ours, said.holds))
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error
        yield Check(what, said.unit, ours, low, high, said.said, holds, filled(said.why))


def _known(made: Experiment, check: Check, figure: str) -> None:
    """:raises ConfigError: nothing gives this figure."""
    if figure == "ours" or (figure in ("low", "high") and check.low is not None):
        return
    first, *rest = figure.split(".")
    wanted: Iterable[str]
    if first in made.traces and len(rest) == 2:
        if rest[0] not in made.configs:
            raise ConfigError(f"{figure}: no configuration {rest[0]!r}; there are {', '.join(made.configs)}")
        wanted = [name for name, kind in columns().items() if kind in ("int64", "double")]
    elif first in made.walks and len(rest) == 1:
        wanted = WALK_FIGURES
    elif first in made.points and len(rest) == 1:
        wanted = POINT_FIGURES
    else:
        raise ConfigError(
            f"{figure}: no figure; those of a run are TRACE.CONFIG.COLUMN, of walks and points NAME.FIGURE, with "
            f"{', '.join([*made.traces, *made.walks, *made.points])}"
        )
    if rest[-1] not in wanted:
        raise ConfigError(f"{figure}: there is no {rest[-1]!r} in it" + (
            f"; there are {', '.join(wanted)}" if len(tuple(wanted)) < 12 else ", see docs/studies.md"))  # fmt: skip
