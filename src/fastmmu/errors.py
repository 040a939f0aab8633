"""Every error that fastmmu raises on purpose.

Each message names the bad value and what to do about it. All are subclasses of :class:`FastmmuError`;
where Python has a fitting built-in class they are subclasses of that too, so ``except ValueError`` works.
"""

from __future__ import annotations

import enum
from typing import Any, NoReturn

__all__ = [
    "VM_INSTRUCTION_ERRORS",
    "BusError",
    "CheckpointError",
    "ConfigError",
    "EventError",
    "FastmmuError",
    "MissingExtraError",
    "NotMappedError",
    "OutOfMemoryError",
    "PolicyError",
    "StateError",
    "StudyError",
    "TraceError",
    "VmFail",
    "VmFailInvalid",
    "VmFailValid",
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


class CheckpointError(FastmmuError, ValueError):
    """A checkpoint that cannot be gone on from: damaged, of another version, configuration or trace; or a machine that
    cannot be saved. The message begins with the file."""


class BusError(FastmmuError, IndexError):
    """A physical address outside the memory given, where one inside is needed."""


class NotMappedError(FastmmuError, LookupError):
    """Bytes were asked for of which some are in holes: not mapped, or mapped to what is no memory.

    ``holes``: where they are, and why, a record array (:data:`fastmmu.dtypes.HOLE_DTYPE`).
    """

    def __init__(self, message: str, holes: Any = None) -> None:
        super().__init__(message)
        self.holes = holes

    def __reduce__(self) -> tuple[type[NotMappedError], tuple[str, Any]]:
        return type(self), (str(self), self.holes)


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


class StudyError(FastmmuError, RuntimeError):
    """A study that cannot go on: a worker of another version, a trace that changed meanwhile, runs that failed.

    ``failed`` has a sentence for each run that failed; those that were finished are kept.
    """

    def __init__(self, message: str, failed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.failed = failed

    def __reduce__(self) -> tuple[type[StudyError], tuple[str, tuple[str, ...]]]:
        return type(self), (str(self), self.failed)


VM_INSTRUCTION_ERRORS = {
    1: "VMCALL executed in VMX root operation",
    2: "VMCLEAR with invalid physical address",
    3: "VMCLEAR with VMXON pointer",
    4: "VMLAUNCH with non-clear VMCS",
    5: "VMRESUME with non-launched VMCS",
    6: "VMRESUME after VMXOFF",
    7: "VM entry with invalid control field(s)",
    8: "VM entry with invalid host-state field(s)",
    9: "VMPTRLD with invalid physical address",
    10: "VMPTRLD with VMXON pointer",
    11: "VMPTRLD with incorrect VMCS revision identifier",
    12: "VMREAD/VMWRITE from/to unsupported VMCS component",
    13: "VMWRITE to read-only VMCS component",
    15: "VMXON executed in VMX root operation",
    16: "VM entry with invalid executive-VMCS pointer",
    17: "VM entry with non-launched executive VMCS",
    18: "VM entry with executive-VMCS pointer not VMXON pointer",
    19: "VMCALL with non-clear VMCS",
    20: "VMCALL with invalid VM-exit control fields",
    22: "VMCALL with incorrect MSEG revision identifier",
    23: "VMXOFF under dual-monitor treatment of SMIs and SMM",
    24: "VMCALL with invalid SMM-monitor features",
    25: "VM entry with invalid VM-execution control fields in executive VMCS",
    26: "VM entry with events blocked by MOV SS",
    28: "Invalid operand to INVEPT/INVVPID",
}
"""VM-instruction error numbers (SDM volume 3, "VM instruction error numbers")."""


class VmFail(FastmmuError, RuntimeError):
    """An instruction of :mod:`fastmmu.vmx` failed, as VMX instructions do: RFLAGS.CF or ZF is 1, nothing else changed.

    ``instruction`` is its name, ``error`` the VM-instruction error number or None, ``failed`` the names of the checks
    of VM entry that failed.
    """

    def __init__(
        self, instruction: str, error: int | None = None, detail: str = "", failed: tuple[str, ...] = ()
    ) -> None:
        super().__init__(instruction, error, detail, failed)
        self.instruction, self.error, self.detail, self.failed = instruction, error, detail, failed

    def __str__(self) -> str:
        text = f"{self.instruction}: VMfailInvalid, there is no current VMCS; VMPTRLD makes one current"
        if self.error is not None:
            text = f"{self.instruction}: VM-instruction error {self.error}, {VM_INSTRUCTION_ERRORS[self.error]}"
        return f"{text}: {self.detail}" if self.detail else text


class VmFailInvalid(VmFail):
    """VMfailInvalid (CF=1): there is no current VMCS to hold a number."""


class VmFailValid(VmFail):
    """VMfailValid (ZF=1): the number is in the VM-instruction error field of the current VMCS, too."""


# ---- enumerations of codes ---------------------------------------------------------------------------------------


def no_code(kind: type[enum.IntEnum] | type[enum.IntFlag], value: object) -> NoReturn:
    """What a class of codes says of a value that is none."""
    members = list(kind)
    known = ", ".join(f"{code.value} {code.name}" for code in members[:10])
    try:
        text = f"{value!r:.80}"
    except Exception:
        text = f"a {type(value).__name__}"
    raise StateError(f"{text} is no {kind.__name__}; there are {known}{', ...' if members[10:] else ''}")


class Code(enum.IntEnum):
    """Named numbers; one that has no name is a :class:`StateError`, which is a ValueError as for any enumeration."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        no_code(cls, value)


class Flags(enum.IntFlag):
    """Named bits; what is no number is a :class:`StateError`, which is a ValueError as for any enumeration."""

    @classmethod
    def _missing_(cls, value: object) -> Any:
        if not isinstance(value, int):
            no_code(cls, value)
        return super()._missing_(value)
