"""A machine as a file, and back."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
import numpy.typing as npt

from fastmmu._checked import checked
from fastmmu.arch.memtype_py import Mtrrs
from fastmmu.errors import CheckpointError, FastmmuError
from fastmmu.machine.checkpoint.board import given_to, restore, state_of, vmm_object
from fastmmu.machine.checkpoint.container import read_container, write_container
from fastmmu.machine.config import Config
from fastmmu.machine.machine import Machine
from fastmmu.machine.policy import Policy
from fastmmu.machine.slots import MemorySlot
from fastmmu.paging.state import GuestState

__all__ = [
    "FORMAT", "OWN", "Header", "Stored", "load_machine", "machine_of", "own", "read", "save_machine", "stored", "write",
]  # fmt: skip

FORMAT = 1
"""Of the files; another one is refused."""

OWN = "run."
"""Begins the names of arrays of a run, beside those of its machine."""

Path = str | os.PathLike[str]


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands in the text of a file beside its arrays."""

    format: int
    version: str
    config: dict[str, Any]
    kernel: bool
    state: dict[str, Any]
    slots: list[list[Any]]
    names: list[str]
    vmm: str = ""  # class of a VMM in Python that is not fastmmu.Kvm
    vmm_state: Any = None
    policy: str = ""
    policy_state: Any = None
    more: dict[str, Any] = {}  # of what is more than a machine


class Stored(msgspec.Struct, frozen=True):
    """A file that was read: its text, and its arrays."""

    path: str
    header: Header
    arrays: dict[str, npt.NDArray[Any]]


# ---- writing -----------------------------------------------------------------------------------------------------


def stored(machine: Machine, more: dict[str, Any] | None = None, arrays: dict[str, Any] | None = None) -> Stored:
    """A machine as it is now. more, arrays: what else goes into the file.

    :raises CheckpointError: it cannot be saved: one of a Host, or with a policy or VMM in Python that keeps state and
        does not say how to save it.
    """
    if machine.config.mmu == "agile":
        raise CheckpointError('mmu="agile" has no checkpoints yet; run it in one go, or use mmu="ept" or "shadow"')
    vmm, vmm_state = _of_python(vmm_object(machine), {"vm", "mmu", "_handlers"}, "VMM")
    policy, policy_state = _of_python(machine.policy, set(), "policy")
    kernel, slots = given_to(machine)
    names, found = state_of(machine)
    header = Header(
        format=FORMAT,
        version=_version(),
        config=machine.config.replace(vmm="python").fields() if vmm else machine.config.fields(),
        kernel=kernel,
        state=_registers(machine.initial),
        slots=[list(slot) for slot in slots],
        names=names,
        vmm="" if machine.config.vmm == "python" else vmm,
        vmm_state=vmm_state,
        policy=policy,
        policy_state=policy_state,
        more=more or {},
    )
    return Stored("", header, {**found, **(arrays or {})})


def write(path: Path, found: Stored) -> None:
    """:raises OSError: it cannot be written; one that is there stays as it was."""
    write_container(path, msgspec.json.encode(found.header), found.arrays)


@checked
def save_machine(machine: Machine, path: Path) -> None:
    """:meth:`Machine.save`."""
    write(path, stored(machine))


def _version() -> str:
    try:
        return version("fastmmu")
    except PackageNotFoundError:  # a source tree that was never installed
        return "uninstalled"


def _of_python(found: Any, known: set[str], what: str) -> tuple[str, Any]:
    """Name and state of an object in Python, whose own methods save it."""
    if found is None:
        return "", None
    kind = type(found)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if hasattr(found, "save_state") and hasattr(found, "load_state"):
        state = found.save_state()
        try:
            return name, msgspec.json.decode(msgspec.json.encode(state))
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise CheckpointError(
                f"{name}.save_state() returned what JSON has no form for ({error}); return numbers, text, lists, dicts"
            ) from error
    own = sorted({*getattr(found, "__dict__", {}), *_slots(kind)} - known)
    if own:
        raise CheckpointError(
            f"the {what} {name} keeps {', '.join(own)}, of which a checkpoint knows nothing; give it save_state(self), "
            "which returns what JSON can hold, and load_state(self, state)"
        )
    return name, None


def _slots(kind: type) -> list[str]:
    return [name for each in kind.__mro__ for name in _words(each.__dict__.get("__slots__", ())) if name[:2] != "__"]


def _words(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _registers(state: GuestState) -> dict[str, Any]:
    found = dict(state.registers)
    mtrrs = found["mtrrs"]
    return {**found, "mtrrs": None if mtrrs is None else dict(mtrrs.registers)}


# ---- reading -----------------------------------------------------------------------------------------------------


def read(path: Path) -> Stored:
    """A file, of this format and version of fastmmu.

    :raises CheckpointError: it is none, is damaged, or of another version. :raises OSError: it cannot be read.
    """
    text, arrays = read_container(path)
    name = os.fspath(path)
    try:
        found = msgspec.json.decode(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise CheckpointError(f"{name}: of format {found.get('format') if isinstance(found, dict) else None!r}, "
                                  f"this fastmmu reads {FORMAT}; begin the run anew")  # fmt: skip
        if found.get("version") != _version():
            raise CheckpointError(f"{name}: of fastmmu {found.get('version')!r}, this is {_version()}; go on with that "
                                  "version, or begin the run anew")  # fmt: skip
        header = msgspec.convert(found, Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{name}: damaged: {error}") from error
    return Stored(name, header, arrays)


def own(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a run, beside those of its machine."""
    return {name.removeprefix(OWN): array for name, array in arrays.items() if name.startswith(OWN)}


def config_of(found: Stored, vmm: type | None = None) -> Config:
    """The configuration of a file.

    :param vmm: the class of its VMM in Python, where it is not fastmmu's own.
    :raises CheckpointError: it is none, or the class is another one.
    """
    named = "" if vmm is None else f"{vmm.__module__}:{vmm.__qualname__}"
    if found.header.vmm != named:
        wanted = found.header.vmm or "fastmmu's own"
        raise CheckpointError(f"{found.path}: its VMM is {wanted}, not {named or 'that'}; give the class by vmm=")
    try:
        config = msgspec.convert(found.header.config, Config)
    except (FastmmuError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{found.path}: damaged: {error}") from error
    if not isinstance(config.vmm, str):
        raise CheckpointError(f"{found.path}: damaged: a VMM without a name")
    return config if vmm is None else config.replace(vmm=vmm)


def machine_of(found: Stored, *, policy: Policy | None = None, vmm: type | None = None) -> Machine:
    """The machine of a file that was read."""
    head, name = found.header, "" if policy is None else f"{type(policy).__module__}:{type(policy).__qualname__}"
    config = config_of(found, vmm)
    if head.policy != name:
        raise CheckpointError(f"{found.path}: its policy is {head.policy or 'none'}, not {name or 'none'}; give an "
                              "object of that class by policy=")  # fmt: skip
    try:
        slots = [MemorySlot(*slot) for slot in head.slots]
        machine = Machine(config, policy=policy, guest_kernel=head.kernel, state=_state(head.state), slots=slots)
        restore(machine, head.names, found.arrays)
    except FastmmuError as error:
        raise CheckpointError(f"{found.path}: {error}") from error
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{found.path}: damaged: {error}") from error
    for kept, state in ((policy, head.policy_state), (vmm_object(machine), head.vmm_state)):
        if state is not None and kept is not None:
            kept.load_state(state)  # type: ignore[union-attr]
    return machine


@checked
def load_machine(path: Path, *, policy: Policy | None = None, vmm: type[Any] | None = None) -> Machine:
    """:meth:`Machine.from_checkpoint`."""
    return machine_of(read(path), policy=policy, vmm=vmm)


def _state(registers: dict[str, Any]) -> GuestState:
    found = dict(registers)
    mtrrs = found.get("mtrrs")
    return GuestState(**{**found, "mtrrs": None if mtrrs is None else Mtrrs(**mtrrs)})
