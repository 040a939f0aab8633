"""What there is to call: every public function, every public attribute of every public class, found by walking.

The callables are found: the names in `__all__` of the packages, the public names of the compiled modules, the public
attributes of all these classes. Not among them are the command line, which has words for its errors, `reference`,
which calls no kernel and says what it needs by assertions, and KVM in Python, whose methods a machine calls; what they
call is among them (`fastmmu.kvm.port`).
"""

from __future__ import annotations

import ast
import contextlib
import copy
import enum
import importlib
import inspect
import itertools
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import fastmmu
from fastmmu import FastmmuError
from tests.support.hostile_objects import BY_CLASS, World
from tests.support.hostile_values import OwnError

ALLOWED = (FastmmuError, TypeError, OwnError, StopIteration, OSError)
"""OwnError: the word of an object that was given. OSError: of a file that cannot be had."""
ASIDE = ("fastmmu.reference", "fastmmu.cli", "fastmmu.__main__", "fastmmu.kvm.policy")


@dataclass(frozen=True)
class Call:
    """One public callable: `name` is "module.function" or "module.Class.method"."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    do: Callable[[World, dict[str, Any]], Any] = field(compare=False, repr=False)

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.required + self.optional


# ---- what there is ---------------------------------------------------------------------------------------------------


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(fastmmu.__path__, "fastmmu."):
        parts = found.name.split(".")
        if not found.name.startswith(ASIDE) and not any(part.startswith("_") for part in parts[1:-1]):
            yield importlib.import_module(found.name)


def public() -> dict[str, Any]:
    """Qualified name → function or class: what `__all__` of a package names, and what compiled modules define."""
    found: dict[str, Any] = {}
    for module in [fastmmu, *modules()]:
        compiled = not (module.__file__ or "").endswith(".py")
        package = hasattr(module, "__path__")
        if not compiled and not package:
            continue
        for name in sorted(getattr(module, "__all__", ())) if package else sorted(vars(module)):
            value = getattr(module, name)
            home = getattr(value, "__module__", "")
            if name.startswith("_") or not callable(value) or not home.startswith("fastmmu.") or home.startswith(ASIDE):
                continue
            if package or home == module.__name__:
                found[f"{home.removeprefix('fastmmu.')}.{value.__name__}"] = value
    return {name: value for name, value in found.items() if name.split(".")[0] != "_arguments"}


def signature(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Names of the parameters without and with a default; None where nothing is known of them."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (ValueError, TypeError):
        return None
    named = [p for p in parameters if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return tuple(p.name for p in named if p.default is p.empty), tuple(
        p.name for p in named if p.default is not p.empty
    )


def constructor(cls: type) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of a compiled class: as its stub says."""
    known = signature(cls)
    if known is not None and cls.__init__ is not object.__init__:
        return known
    stub = Path(fastmmu.__path__[0], *cls.__module__.split(".")[1:]).with_suffix(".pyi")
    for node in ast.parse(stub.read_text()).body if stub.exists() else ():
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and member.name in ("__init__", "__new__"):
                    args = member.args
                    names = [each.arg for each in args.args[1:]]
                    needed = names[: len(names) - len(args.defaults)]
                    kwonly = [(a.arg, d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
                    return (
                        (*needed, *(name for name, default in kwonly if default is None)),
                        (*names[len(needed) :], *(name for name, default in kwonly if default is not None)),
                    )
    return (), ()


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public attributes that fastmmu defines, whichever class of its own it is."""
    seen: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.startswith("fastmmu"):
            for name, value in vars(base).items():
                if name not in seen and not name.startswith("_"):
                    seen.add(name)
                    yield name, value


SPECIAL: dict[str, Callable[[Any], Any]] = {
    "repr()": repr, "str()": str, "hash()": hash, "len()": len, "iter()": lambda o: list(itertools.islice(o, 4)),
    "next()": next, "copy()": copy.copy, "deepcopy()": copy.deepcopy, "bool()": bool,
    "pickle()": lambda o: pickle.loads(pickle.dumps(o)), "dir()": lambda o: [getattr(o, n, None) for n in dir(o)],
}  # fmt: skip
COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda o, other: alike(o, other), "in": lambda o, other: held(o, other),
    "[]": lambda o, other: item(o, other),
}  # fmt: skip


def alike(one: Any, other: Any) -> Any:
    with contextlib.suppress(ValueError):  # an array compared is an array
        return one == other


def held(within: Any, value: Any) -> Any:
    with contextlib.suppress(ValueError):
        return value in within


def item(of: Any, key: Any) -> Any:
    with contextlib.suppress(LookupError):  # a sequence's own
        return of[key]


def consumed(value: Any) -> Any:
    """The first of what a generator gives: its body runs only then."""
    return list(itertools.islice(value, 3)) if inspect.isgenerator(value) else value


def calls() -> list[Call]:
    """All of them."""
    found: list[Call] = []
    for name, value in public().items():
        if inspect.isclass(value) and issubclass(value, BaseException):
            continue  # an exception is whatever whoever raises it says
        if not inspect.isclass(value):
            required, optional = signature(value) or ((), ())
            found.append(Call(name, required, optional, lambda w, a, f=value: consumed(f(**a))))  # type: ignore[misc]
            continue
        required, optional = (("value",), ()) if issubclass(value, enum.Enum) else constructor(value)
        make_it = code if issubclass(value, enum.Enum) else value
        found.append(Call(f"{name}()", required, optional, lambda w, a, c=value, m=make_it: made(c, m, a)))  # type: ignore[misc]
        found.append(Call(f"{name} __new__", (), (), lambda w, a, c=value: use(c.__new__(c))))  # type: ignore[misc]
        make = maker(name)
        if make is not None:
            found += of_object(name, value, make)
    return found


def made(cls: Any, make: Any, arguments: dict[str, Any]) -> Any:
    return make(cls, arguments) if make is code else make(**arguments)


def code(cls: Any, arguments: dict[str, Any]) -> Any:
    """A member of an enumeration, which looks for it by `==`: of an array NumPy has its own word for that."""
    try:
        return cls(**arguments)
    except (ValueError, OverflowError) as error:
        value = arguments.get("value")
        endless = isinstance(value, int) and value.bit_length() > 10000  # which Python does not print
        if isinstance(error, FastmmuError) or not (endless or isinstance(value, (np.ndarray, np.generic, memoryview))):
            raise


def maker(name: str) -> Callable[[World], Any] | None:
    """How an object of a class is made; None where that is not said: then it has nothing to be called."""
    return BY_CLASS.get(name) or BY_CLASS.get(name.rpartition(".")[2])


def of_object(name: str, cls: type, make: Callable[[World], Any]) -> Iterator[Call]:
    """Methods, properties and what Python itself asks of an object."""
    of_numpy = issubclass(cls, np.ndarray)  # what Python asks of an array NumPy answers
    for special, ask in () if of_numpy else SPECIAL.items():
        yield Call(f"{name} {special}", (), (), lambda w, a, ask=ask: ask(make(w)))  # type: ignore[misc]
    for sign, compare in () if of_numpy else COMPARED.items():
        yield Call(f"{name} {sign}", ("other",), (), lambda w, a, c=compare: c(make(w), a["other"]))  # type: ignore[misc]
    for member, value in members(cls):
        full = f"{name}.{member}"
        if isinstance(value, (staticmethod, classmethod)) or callable(value):
            required, optional = signature(getattr(cls, member)) or ((), ())
            yield Call(
                full,
                required,
                optional,
                lambda w, a, m=member: consumed(getattr(make(w), m)(**a)),  # type: ignore[misc]
            )
        elif hasattr(value, "__get__"):
            yield Call(full, (), (), lambda w, a, m=member: getattr(make(w), m))  # type: ignore[misc]
            yield Call(
                f"{full}=",
                ("value",),
                (),
                lambda w, a, m=member: assign(make(w), m, a["value"]),  # type: ignore[misc]
            )


def assign(target: Any, name: str, value: Any) -> None:
    with contextlib.suppress(AttributeError):  # of what cannot be set
        setattr(target, name, value)


def use(target: Any) -> None:
    """Everything without arguments of an object that `__init__` did not make."""
    for name, _ in members(type(target)):
        try:
            found = getattr(target, name)
            if callable(found) and not inspect.isclass(found):
                required, _ = signature(found) or ((), ())
                found(**dict.fromkeys(required, 0))
        except (*ALLOWED, AttributeError):
            pass
    for ask in SPECIAL.values():
        with contextlib.suppress(*ALLOWED, AttributeError):
            ask(target)
