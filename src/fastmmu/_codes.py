"""The base of enumerations of codes."""

from __future__ import annotations

import enum
from typing import NoReturn

from fastmmu.errors import StateError

__all__ = ["Code", "no_code"]


def no_code(kind: type[enum.IntEnum] | type[enum.IntFlag], value: object) -> NoReturn:
    """What a class of codes says of a value that is none."""
    from fastmmu._arguments import shown

    members = list(kind)
    known = ", ".join(f"{code.value} {code.name}" for code in members[:10])
    raise StateError(f"{shown(value)} is no {kind.__name__}; there are {known}{', ...' if members[10:] else ''}")


class Code(enum.IntEnum):
    """Named numbers; one that has no name is a :class:`StateError`, which is a ValueError as for any enumeration."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        no_code(cls, value)
