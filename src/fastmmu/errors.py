"""Every error that fastmmu raises on purpose.

Each message names the bad value and what to do about it. All are subclasses of :class:`FastmmuError`;
where Python has a fitting built-in class they are subclasses of that too, so ``except ValueError`` works.
"""

from __future__ import annotations

__all__ = [
    "BusError",
    "ConfigError",
    "EventError",
    "FastmmuError",
    "MissingExtraError",
    "OutOfMemoryError",
    "PolicyError",
    "StateError",
    "TraceError",
    "WrongTypeError",
]


class FastmmuError(Exception):
    """Base of all errors raised by fastmmu."""


class StateError(FastmmuError, ValueError):
    """A register value that no processor accepts, or that contradicts another one."""


class ConfigError(FastmmuError, ValueError):
    """A configuration (geometry, preset, cost file, option) that cannot be simulated."""


class WrongTypeError(StateError, ConfigError, TypeError):
    """An argument of a type that the call does not take: floating point for a number, text for an array.

    A :class:`TypeError`, and whoever catches the error of a wrong value catches that of a wrong type.
    """


class BusError(FastmmuError, IndexError):
    """A physical address outside the memory given, where one inside is needed."""


class OutOfMemoryError(FastmmuError, MemoryError):
    """Simulated memory (guest frames, table pages) is used up, or the host refuses to provide it."""


class TraceError(FastmmuError, ValueError):
    """A trace that cannot be read: malformed, truncated, of an unknown format.

    ``path`` is the file, ``where`` the place in it ("line 12", "byte 4096"), or None where unknown.
    """

    def __init__(self, message: str, *, path: str | None = None, where: str | None = None) -> None:
        at = ", ".join(part for part in (path, where) if part)
        super().__init__(f"{at}: {message}" if at else message)
        self.path = path
        self.where = where


class EventError(StateError, TraceError):
    """An event of a trace that faults: a register refuses its value (#GP), or its page is not mapped (#PF)."""


class MissingExtraError(FastmmuError, ImportError):
    """An optional package is needed for this; the message says how to install it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package: pip install 'fastmmu[{extra}]'")
        self.what = what
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), (self.what, self.extra)


class PolicyError(FastmmuError, RuntimeError):
    """A policy did something that no VMM may do (for example an exit that never makes progress)."""
