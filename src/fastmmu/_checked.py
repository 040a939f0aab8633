"""Arguments of Python functions, checked by their annotations: what `_arguments` does for the edges of kernels.

``@checked`` looks at each argument before the function runs, so that a wrong type is a
:class:`~fastmmu.errors.WrongTypeError` that names it, and not an AttributeError from somewhere inside. NumPy's numbers
and bools become Python's, arrays become lists where a sequence is asked for. Values are the function's to judge.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import types
from collections import abc
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from fastmmu._arguments import flag, shown, whole
from fastmmu.errors import ConfigError, StateError, WrongTypeError

__all__ = ["check_fields", "checked", "checked_but"]

P = ParamSpec("P")
R = TypeVar("R")
MOST_BITS = 512
"""Of a number: more are a mistake whatever it is for, and take long to print."""
MOST_ITEMS = 1 << 20
_WORDS = {int: "an integer", float: "a number", str: "text", bool: "True or False", type(None): "None"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which refuses arguments of other types than it is annotated with."""
    return checked_but()(function)


def checked_but(*judged: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """As :func:`checked`, but for parameters of which the function itself says more."""
    return lambda function: _checked(function, judged)


def _checked(function: Callable[P, R], judged: Collection[str]) -> Callable[P, R]:
    parameters = inspect.signature(function).parameters.values()
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [each.name for each in parameters if each.kind in by_place]
    any_name = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    names = {each.name for each in parameters if each.kind not in any_name}
    hints: dict[str, Any] = {}
    plain: Callable[..., R] = function

    @functools.wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        if not hints:
            hints.update({**_hints(function), **dict.fromkeys(judged, Any)})  # at once: another thread may look
        taken: list[Any] = [
            _taken(name, value, hints.get(name, Any)) for name, value in zip(places, args, strict=False)
        ]
        by_name: dict[str, Any] = {
            name: _taken(name, value, hints.get(name, Any)) if name in names else value for name, value in named.items()
        }
        taken += args[len(taken) :]
        return plain(*taken, **by_name)  # what is missing or too much it says itself

    return call


def check_fields(record: Any) -> None:
    """For `__post_init__` of a frozen dataclass: its fields are of the types that they are annotated with."""
    for name, hint in _hints(type(record)).items():
        if hasattr(record, name):
            object.__setattr__(record, name, _taken(name, getattr(record, name), hint))


def _hints(of: Any) -> dict[str, Any]:
    try:
        return get_type_hints(of)
    except NameError as error:  # a name that type checkers alone import: its annotations say nothing here
        unknown: dict[str, Any] = {str(error.name): Any}
        while True:
            try:
                return get_type_hints(of, localns=unknown)
            except NameError as another:
                unknown[str(another.name)] = Any


def _taken(name: str, value: Any, hint: Any) -> Any:
    """The value as the function gets it. :raises WrongTypeError: it is not of this type."""
    try:
        return _as(name, value, hint)
    except _No:
        raise WrongTypeError(f"{name} must be {_words(hint)}, not {shown(value)} ({type(value).__name__})") from None


class _No(Exception):
    """Not of this type."""


def _as(name: str, value: Any, hint: Any) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(name, value, get_args(hint))
    if origin is Literal:
        if not isinstance(value, str) and value not in [word for word in get_args(hint) if not isinstance(word, str)]:
            raise _No
        return value
    if hint is bool:
        return _wanted(flag, name, value)
    if hint is int:
        return _number(name, value)
    if hint is float:
        return _real(name, value)
    if hint is str:
        return str.__str__(_is(value, str))  # that of a subclass may be anything
    plain = origin or hint
    if plain is abc.Callable:
        if not callable(value):
            raise _No
        return value
    if plain in (abc.Mapping, dict):
        return _is(value, Mapping)
    if plain in (abc.Sequence, abc.Collection, abc.Iterable, list, tuple):
        return _items(name, value, plain, get_args(hint))
    if getattr(plain, "_is_protocol", False):
        wanted = [each for each in vars(plain) if not each.startswith("_")]
        if not all(hasattr(value, each) for each in wanted):
            raise _No
        return value
    if plain is os.PathLike:
        return _is(value, os.PathLike)
    return _is(value, plain) if isinstance(plain, type) and plain is not object else value


def _one_of(name: str, value: Any, hints: tuple[Any, ...]) -> Any:
    if value is None and type(None) in hints:
        return None
    for hint in hints:
        with contextlib.suppress(_No):
            return _as(name, value, hint)
    raise _No


def _is(value: Any, kind: Any) -> Any:
    if kind is type(None):
        if value is not None:
            raise _No
    elif not isinstance(value, kind):
        raise _No
    return value


def _wanted(check: Callable[[str, Any], Any], name: str, value: Any) -> Any:
    try:
        return check(name, value)
    except WrongTypeError:
        raise _No from None


def _number(name: str, value: Any) -> int:
    number: int = _wanted(whole, name, value)
    if number.bit_length() > MOST_BITS:
        raise StateError(f"{name} is {shown(number)}; no number here has more than {MOST_BITS}")
    return number


def _real(name: str, value: Any) -> float:
    if isinstance(value, (float, np.floating)):
        return float(value)
    return _number(name, value)


def _items(name: str, value: Any, plain: Any, hints: tuple[Any, ...]) -> Any:
    if isinstance(value, (str, bytes, bytearray, memoryview)) or (isinstance(value, np.ndarray) and value.ndim != 1):
        raise _No
    if isinstance(value, np.ndarray):
        value = value.tolist()
    needed: Any = {abc.Sequence: Sequence, abc.Iterable: Iterable, abc.Collection: Collection}.get(plain, plain)
    if not isinstance(value, needed):
        raise _No
    if plain is tuple and hints[-1:] != (...,):
        if len(value) != len(hints):
            raise _No
        return tuple(_as(name, each, hint) for each, hint in zip(value, hints, strict=True))
    if not isinstance(value, (list, tuple, range, set, frozenset, abc.Mapping)):
        # what is gone through once is looked at then
        return (_taken(f"{name}[{i}]", each, hints[0]) for i, each in enumerate(value)) if hints else value
    if len(value) > MOST_ITEMS:
        raise ConfigError(f"{name} has {shown(len(value))} items; {MOST_ITEMS} are more than enough")
    found = [_taken(f"{name}[{i}]", each, hints[0]) for i, each in enumerate(value)] if hints else list(value)
    return tuple(found) if isinstance(value, tuple) else found


def _words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in parts))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, itertools.islice(parts, 12)))
    if hint in _WORDS:
        return _WORDS[hint]
    plain = origin or hint
    if plain is os.PathLike:
        return "a path"
    if plain is abc.Callable:
        return "a function"
    if plain in (abc.Sequence, abc.Collection, abc.Iterable, list, tuple):
        return f"a sequence of {_words(parts[0])}" if parts else "a sequence"
    return f"a {getattr(plain, '__name__', plain)}"
