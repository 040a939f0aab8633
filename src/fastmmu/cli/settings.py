"""--config, --save-config: the options of a run in a file.

    [config]            fields of fastmmu.Config, all of them
    mmu = "ept"
    [options]           options of the command, without their dashes
    traces = ["sqlite"]
    warm-up = 100000

What stands on the command line wins.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fastmmu.cli.vmm import vmm_of
from fastmmu.errors import ConfigError

if TYPE_CHECKING:
    from fastmmu.machine.config import Config

__all__ = ["add_settings", "apply", "save"]

LEFT_OUT = {
    "checkpoint", "checkpoint_every", "config", "csv", "exits", "frames_of", "help", "jobs", "json", "no_walk_caches",
    "parquet", "plot", "quiet", "report", "save_config", "size",
}  # fmt: skip
"""What is of one run alone: its files, and how it is made. --no-walk-caches is a field."""


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("options in a file")
    group.add_argument("--config", metavar="FILE", help="TOML with fields of fastmmu.Config, and options; these win")
    group.add_argument("--save-config", metavar="FILE", help="write the fields and options of this run")


# ---- reading -----------------------------------------------------------------------------------------------------


def apply(parser: argparse.ArgumentParser, path: str) -> None:
    """What a file says becomes the defaults of a command, which is parsed once more.

    :raises ConfigError: it is no TOML, or a key or value is none: names file, key, value and what there is.
    :raises OSError: it cannot be read.
    """
    from fastmmu.machine.wholly import read_whole

    try:
        whole = tomllib.loads(read_whole(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: no TOML: {error}") from error
    try:
        _known(whole, ("config", "options"), "")
        options = {action.dest: action for action in parser._actions if action.dest not in LEFT_OUT}
        values, further = _fields(_table(whole, "config"), options)
        parser.set_defaults(**{**values, **_options(_table(whole, "options"), options), "config_further": further})
    except _Refused as error:
        raise ConfigError(f"{path}: {error}") from error


class _Refused(Exception):
    """What is wrong at which key."""


def _table(whole: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = whole.get(key, {})
    if not isinstance(found, dict):
        raise _Refused(f"{key} = {_toml(found)}: no table; write [{key}] in a line of its own")
    return found


def _fields(table: Mapping[str, Any], options: Mapping[str, argparse.Action]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Defaults of the options that are fields; and the other fields."""
    import msgspec

    from fastmmu.machine.config import Config
    from fastmmu.machine.config_fields import Fields, refused_alone

    _known(table, Config.__struct_fields__, "config")
    values: dict[str, Any] = {}
    further: dict[str, Any] = {}
    for name, value in table.items():
        key = f"config.{name} = {_toml(value)}"
        if name == "vmm":
            if not isinstance(value, str):
                raise _Refused(f"{key}: give kernel, python or MODULE:CLASS")
            try:
                vmm_of(value)
            except ConfigError as error:
                raise _Refused(f"{key}: {error}") from error
        elif (said := refused_alone(name, value)) is not None:
            raise _Refused(f"{key}: {said}")
        if name in options and not isinstance(value, dict):
            values[name] = _value(options[name], value, key)
        elif name == "vmm":
            further[name] = vmm_of(value)
        else:
            further[name] = getattr(msgspec.convert({name: value}, Fields), name)
    return values, further


def _options(table: Mapping[str, Any], options: Mapping[str, argparse.Action]) -> dict[str, Any]:
    named = {dest.replace("_", "-"): action for dest, action in options.items()}
    _known(table, named, "options")
    return {
        named[name].dest: _value(named[name], value, f"options.{name} = {_toml(value)}")
        for name, value in table.items()
    }


def _value(action: argparse.Action, value: Any, key: str) -> Any:
    """As the option would have it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise _Refused(f"{key}: give true or false")
        return value
    if action.nargs in ("*", "+"):
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise _Refused(f"{key}: give a list of texts")
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int, float, list)):
        raise _Refused(f"{key}: give what stands behind --{action.dest.replace('_', '-')}")
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        found = action.type(text) if callable(action.type) else text if isinstance(value, list) else value
    except (argparse.ArgumentTypeError, ValueError, ConfigError) as error:
        raise _Refused(f"{key}: {error}") from error
    if action.choices is not None and found not in action.choices:
        raise _Refused(f"{key}: choose from {', '.join(map(str, action.choices))}")
    return found


def _known(table: Mapping[str, Any], known: Iterable[str], key: str) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise _Refused(f"{key + '.' if key else ''}{name}: no such key; {hint}")


# ---- writing -----------------------------------------------------------------------------------------------------


def save(options: argparse.Namespace, fields: Mapping[str, Any] | Config) -> None:
    """Write what this run is, if that was asked for.

    :param fields: of Config, those that it has; or all of them, of one configuration.
    :raises ConfigError: a VMM of a script, which no file can name. :raises OSError: it cannot be written.
    """
    if options.save_config is None:
        return
    from fastmmu.report.files import check_target, write_whole

    check_target(options.save_config, "json")
    write_whole(options.save_config, written(options, fields).encode("utf-8", "surrogateescape"))


def written(options: argparse.Namespace, fields: Mapping[str, Any] | Config) -> str:
    """The text of such a file."""
    import msgspec

    from fastmmu.machine.config import Config

    given = {name: getattr(fields, name) for name in fields.__struct_fields__} if isinstance(fields, Config) else fields
    found = {name: _text(value) if name == "vmm" else msgspec.to_builtins(value) for name, value in given.items()}
    named = set(Config.__struct_fields__) if isinstance(fields, Config) else set(given)
    lines = ["[config]", *(f"{name} = {_toml(value)}" for name, value in found.items() if value is not None), ""]
    lines.append("[options]")
    for action in options.parser._actions:
        value = getattr(options, action.dest, None)
        if action.dest in LEFT_OUT | named or value is None or value is False or value == []:
            continue
        if action.dest == "traces":
            value = [os.path.abspath(name) if os.path.exists(name) else name for name in value]
        lines.append(f"{action.dest.replace('_', '-')} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _text(vmm: Any) -> str:
    if isinstance(vmm, str):
        return vmm
    if vmm.__module__ == "__main__":
        raise ConfigError(f"{vmm.__qualname__} is a class of a script, which a file cannot name; put it into a module")
    return f"{vmm.__module__}:{vmm.__qualname__}"


def _toml(value: Any) -> str:
    """As TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, dict):
        inner = (f"{name} = {_toml(each)}" for name, each in value.items() if each is not None)
        return f"{{ {', '.join(inner)} }}"
    return str(value)
