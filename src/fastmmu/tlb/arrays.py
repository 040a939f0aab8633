"""Arrays of a TLB: entries and ways, checked, and as text.

:mod:`fastmmu.tlb.geometry` puts them together.
"""

from __future__ import annotations

import operator
import re
from typing import Any

import msgspec

from fastmmu._checked import checked
from fastmmu.errors import ConfigError

__all__ = [
    "PAGES", "REPLACEMENTS", "SHARES", "TABLES", "Array", "add_replacement", "check_unit", "choice", "parse_array",
    "replacement_name", "replacement_of", "shares_of", "unit_of",
]  # fmt: skip

PAGES = ("4k", "2m", "1g")
TABLES = ("pde", "pdpte", "pml4e", "pml5e")
MAX_ENTRIES = 1 << 22
MAX_WAYS = 64  # of a policy that is not lru

REPLACEMENTS = {"lru": "true LRU", "plru": "tree-PLRU", "random": "random", "srrip": "SRRIP", "chirp": "CHiRP"}
"""Replacement policies, and what to call them; :func:`fastmmu.tlb.policy.register_policy` adds to them."""
BUILT_IN = tuple(REPLACEMENTS)

SHARES = {
    "l1": "the first level",
    "l2": "the second level, with the guest-physical mappings that it holds",
    "psc": "the paging-structure caches, those of EPT tables too",
    "gpm": "the guest-physical mappings, where they have an array of their own",
}
"""What hyperthreads of a core may share."""


class Array(msgspec.Struct, frozen=True):
    """One set-associative array.

    :param sizes: what it holds, of "4k", "2m", "1g" (TLB) or "pde", "pdpte", "pml4e", "pml5e" (paging-structure cache).
    :param quota: per size, the most ways of a set that this size may hold; None: all.
    """

    entries: int
    ways: int
    sizes: tuple[str, ...] = ("4k",)
    quota: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _set(self, "entries", _whole(self.entries, "entries"))
        _set(self, "ways", _whole(self.ways, "ways"))
        if self.entries < 1 or self.ways < 1:
            raise ConfigError(f"Array: {_none(self.entries, self.ways)}")
        sizes: Any = self.sizes
        _set(self, "sizes", (sizes,) if isinstance(sizes, str) else _tuple(sizes, "sizes", str))
        if self.quota is not None:
            _set(self, "quota", tuple(_whole(most, "quota") for most in _tuple(self.quota, "quota", object)))

    @property
    def sets(self) -> int:
        """Number of sets, a power of two."""
        return self.entries // self.ways

    def __str__(self) -> str:
        return f"{self.entries}/{self.ways if self.sets > 1 else 'fa'}"

    def described(self) -> str:
        """The array with what it holds: "1536/12 4k 2m"; "2m:8": of that size in at most 8 ways of a set."""
        quota = self.quota or (self.ways,) * len(self.sizes)
        held = [size if most == self.ways else f"{size}:{most}" for size, most in zip(self.sizes, quota, strict=True)]
        return " ".join([str(self), *held])


_set = msgspec.structs.force_setattr  # of what __post_init__ puts into its one form


def _whole(value: Any, what: str) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ConfigError(f"Array: {what}={value!r} is no whole number; write Array(64, 4)")


def _tuple(values: Any, what: str, kind: type) -> tuple[Any, ...]:
    if isinstance(values, (tuple, list)) and all(isinstance(value, kind) for value in values):
        return tuple(values)
    raise ConfigError(f"Array: {what}={values!r}: give a tuple, one for each size that it holds")


def unit_of(arrays: Any, what: str) -> tuple[Array, ...]:
    """Arrays of a unit as a tuple; one alone and a list are taken, too.

    :raises ConfigError: something else.
    """
    if isinstance(arrays, Array):
        return (arrays,)
    if isinstance(arrays, (tuple, list)) and all(isinstance(array, Array) for array in arrays):
        return tuple(arrays)
    raise ConfigError(
        f"{what}={arrays!r}: give a tuple of Array(entries, ways, sizes), or write it in geometry({what}=)"
    )


def shares_of(shared: Any) -> tuple[str, ...]:
    """What hyperthreads share, each once, in the order of :data:`SHARES`; "none": nothing.

    :raises ConfigError: something else.
    """
    words = shared.replace(" ", "").lower().split(",") if isinstance(shared, str) else shared
    if words == ["none"]:
        return ()
    if not isinstance(words, (tuple, list)) or not all(isinstance(word, str) and word in SHARES for word in words):
        raise ConfigError(f"shared={shared!r}: choose from {', '.join(SHARES)}, as in l2,psc; or none")
    return tuple(word for word in SHARES if word in words)


def add_replacement(name: str, described_as: str) -> None:
    """A policy that another package implements: its word, and what to call it."""
    REPLACEMENTS[name] = described_as


def choice() -> str:
    """The words of all policies, for messages."""
    *words, last = REPLACEMENTS
    return f"{', '.join(words)} or {last}"


def replacement_of(word: Any) -> tuple[str, int]:
    """Name and number of a policy: "random:7" is random, with seed 7; 0 where no number stands there.

    :raises ConfigError: there is no such policy, it takes no number, or the number is none below 2**32.
    """
    name, colon, number = word.partition(":") if isinstance(word, str) else (word, "", "")
    if not isinstance(name, str) or name not in REPLACEMENTS:
        raise ConfigError(f"replacement {word!r}: choose {choice()}")
    if colon and (name in BUILT_IN and name != "random"):
        raise ConfigError(f"replacement {word!r}: {name} takes no number; write {name}")
    if colon and not (number.isascii() and number.isdigit() and len(number) <= 10 and int(number) < 1 << 32):
        raise ConfigError(f"replacement {word!r}: behind the colon a number below 2**32, as in {name}:7")
    return name, int(number) if colon else 0


def replacement_name(word: str) -> str:
    """What to call a policy: "random (seed 7)"."""
    name, number = replacement_of(word)
    return REPLACEMENTS[name] + (f" (seed {number})" if name == "random" else f" ({number})" if ":" in word else "")


def check_unit(
    name: str, arrays: tuple[Array, ...], policy: str, *, first: bool, sizes: tuple[str, ...] = PAGES
) -> None:
    held = [size for array in arrays for size in array.sizes]
    for size in held:
        if size not in sizes:
            raise ConfigError(f"TLB {name!r}: no array can hold {size!r}; choose from {', '.join(sizes)}")
    if len(set(held)) != len(held):
        raise ConfigError(
            f"TLB {name!r}: two arrays of one unit hold the same page size ({', '.join(held)}); merge them"
        )
    if first and held and "4k" not in held:
        raise ConfigError(f"TLB {name!r}: a first level must hold 4k pages, not only {', '.join(held)}; add an array")
    for array in arrays:
        _check(f"TLB {name!r}", array.entries, array.ways)
        if array.quota is not None and (
            len(array.quota) != len(array.sizes) or not all(1 <= most <= array.ways for most in array.quota)
        ):
            raise ConfigError(f"TLB {name!r}: quota {array.quota} of {array}; give 1..{array.ways} for each size")
        if replacement_of(policy)[0] != "lru" and array.ways > MAX_WAYS:
            raise ConfigError(
                f"TLB {name!r}: {policy} of {array.ways} ways; use lru, or at most {MAX_WAYS} ways "
                f"({array.entries // MAX_WAYS * MAX_WAYS or MAX_WAYS}/{MAX_WAYS})"
            )


def _none(entries: int, ways: int) -> str:
    return f"{entries}/{ways} has no entries; both numbers must be at least 1, as in 64/4"


def _check(what: str, entries: int, ways: int) -> None:
    if entries < 1 or ways < 1:
        raise ConfigError(f"{what}: {_none(entries, ways)}")
    if entries > MAX_ENTRIES:
        raise ConfigError(f"{what}: {entries} entries are more than {MAX_ENTRIES}; give fewer")
    sets, rest = divmod(entries, ways)
    if rest or sets & (sets - 1) or not sets:
        low = 1 << max(sets.bit_length() - 1, 0)
        near = [f"{low * ways}/{ways}"]
        if sets and 2 * low * ways <= MAX_ENTRIES:
            near.append(f"{2 * low * ways}/{ways}")
        why = f"{entries} entries are no multiple of {ways} ways" if rest else f"{sets} sets, which is no power of two"
        raise ConfigError(f"{what}: {entries}/{ways}: {why}; nearest: {' or '.join(near)}")


@checked
def parse_array(text: str, *, what: str = "geometry", sizes: tuple[str, ...] = ("4k",)) -> Array:
    """The array written "entries/ways", "entries/fa" or "entries fa".

    :param what: name of the option, for messages.
    :raises ConfigError: anything else; zero or negative numbers; a number of sets that is no power of two.
    """
    match = re.fullmatch(r"([+-]?\d+)\s*(?:[/,]\s*([+-]?\d+)(?:[\s-]*ways?)?|[/\s]?\s*(fa))", str(text).strip().lower())
    if not match:
        raise ConfigError(f"{what}: {text!r} is no geometry; write entries/ways, as in 64/4, or 64/fa")
    entries = int(match[1])
    ways = entries if match[3] else int(match[2])
    _check(what, entries, ways)
    return Array(entries, ways, sizes)
