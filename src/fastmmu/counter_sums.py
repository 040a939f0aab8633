"""What makes numbers by the names of `fastmmu.counters` out of the structs in which the kernels count."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmmu.counters import Counter

__all__ = ["Sum", "reader", "sums"]

_MEMBER, _OF_DICT = re.compile(r"([a-z]+)[.]([a-z_0-9]+)"), r'\1["\2"]'


def reader(rows: Iterable[Counter]) -> Callable[[Mapping[str, Mapping[str, Any]]], dict[str, Any]]:
    """What makes a dict by the names of the rows out of the structs, room -> member -> value."""
    items = [f"{row.name!r}: {_MEMBER.sub(_OF_DICT, row.at)}" for row in rows]
    code = compile(f"{{{', '.join(items)}}}", "fastmmu.counters", "eval")

    def read(structs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = eval(code, {"__builtins__": {}}, structs)
        return found

    return read


class Sum:
    """Words of structs added up: word -> factor. What a row of the table is before there are any numbers."""

    def __init__(self, words: Mapping[int, int]) -> None:
        self.words = dict(words)

    def __add__(self, other: Sum | int) -> Sum:
        added = other.words if isinstance(other, Sum) else {}  # sum() begins with 0
        return Sum({word: self.words.get(word, 0) + added.get(word, 0) for word in {**self.words, **added}})

    __radd__ = __add__

    def __mul__(self, factor: int) -> Sum:
        return Sum({word: factor * number for word, number in self.words.items()})

    __rmul__ = __mul__

    def __sub__(self, other: Sum) -> Sum:
        return self + -1 * other


def sums(numbered: Any, first: int = 0) -> Any:
    """The members of a struct, whose values are the numbers of its words, as sums: of words from number `first` on."""
    if isinstance(numbered, dict):
        return {name: sums(member, first) for name, member in numbered.items()}
    if isinstance(numbered, list):
        return [sums(member, first) for member in numbered]
    return Sum({first + numbered: 1})
