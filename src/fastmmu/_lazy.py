"""Packages that load a public name when it is first used (PEP 562): importing one costs next to nothing.

Names stand in a table for the import system and under `if TYPE_CHECKING` for type checkers, which see no `__getattr__`;
tests/project/test_imports.py holds the two together.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False  # `typing` takes longer to import than all else here
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

__all__ = ["lazy"]


def lazy(package: str, homes: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    :param homes: module → the names that the package takes from it. Modules of the package need no row.
    """
    here = sys.modules[package]
    home_of = {name: home for home, names in homes.items() for name in names}

    def load(name: str) -> Any:
        home = home_of.get(name)
        value: Any = getattr(import_module(home), name) if home else _module(package, name)
        vars(here)[name] = value
        return value

    if any(f"{home}.".startswith(f"{package}.{name}.") for name, home in home_of.items()):
        here.__class__ = _Package
    return load, lambda: sorted({*vars(here), *vars(here)["__all__"]})


def _module(package: str, name: str) -> ModuleType:
    wanted = f"{package}.{name}"
    missing = AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
    if name.startswith("__"):
        raise missing
    try:
        return import_module(wanted)
    except ModuleNotFoundError as error:
        if error.name != wanted:
            raise
        raise missing from None


class _Package(ModuleType):
    """A package in which a public name, as `compare`, is also that of a module: the module does not take its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in vars(self).get("__all__", ())):
            super().__setattr__(name, value)
