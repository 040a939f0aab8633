"""Every public class: a value is copied and pickled and stays what it is, what is immutable refuses writes, and what
owns memory of the host says that it cannot be copied."""

from __future__ import annotations

import copy
import dataclasses
import enum
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import fastmmu
from fastmmu import errors

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": (lambda value, protocol=protocol: pickle.loads(pickle.dumps(value, protocol)))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}


def classes() -> Iterator[type]:
    """The public classes of the whole package, but for those of the specification."""
    seen = set()
    for module in pkgutil.walk_packages(fastmmu.__path__, "fastmmu."):
        if ".reference" in module.name or module.name.endswith("__main__"):
            continue
        for name, found in sorted(vars(importlib.import_module(module.name)).items()):
            if inspect.isclass(found) and found.__module__.startswith("fastmmu") and not name.startswith("_"):
                seen.add(found)
    return iter(sorted(seen, key=lambda c: (c.__module__, c.__qualname__)))


def tables() -> fastmmu.PhysicalMemory:
    memory = fastmmu.PhysicalMemory(0x8000)
    for level in range(1, 5):
        memory.write64(level << 12, (level + 1) << 12 | 0x67)
    memory.write64(0x4008, 1 << 51 | 0x67)
    return memory


STATE = fastmmu.GuestState(cr3=0x1000, maxphyaddr=46)
MTRRS = fastmmu.Mtrrs(0xC06, fixed=[0x0106_0406_0506_0001] * 11, variable=[(6, 0x800)])
PML = fastmmu.Pml(0x3000, 17)

# ---- samples of the classes whose values cannot be made up -------------------------------------------------------


def samples() -> dict[type, list[Any]]:
    memory = tables()
    rows = fastmmu.mappings(memory, STATE)
    result = fastmmu.simulate(np.arange(64, dtype=np.uint64) << np.uint64(12), fastmmu.Config(memory="64M"))
    found: dict[type, list[Any]] = {}
    for value in (
        STATE,
        fastmmu.GuestState(cr0=0x8001_0011, cr4=0x20, efer=0, pdptes=(1, 0, 0, 0), mtrrs=MTRRS, upper_a="lazy"),
        MTRRS,
        fastmmu.Mtrrs(),
        PML,
        fastmmu.Eptp(0x101E),
        fastmmu.Eptp(0x105E, maxphyaddr=36, mbec=True, page1gb=False, spptp=0x2000, apic_access=0x5000),
        fastmmu.Eptp(0x105E, pml=PML),
        fastmmu.Npt(0x1000),
        fastmmu.Npt(0x1018, levels=5, maxphyaddr=46, nxe=False, page1gb=False, pat=0x0606_0606_0606_0600),
        fastmmu.walk(memory, STATE, 0x123),
        fastmmu.walk(memory, STATE, 0x1123, access="w"),
        fastmmu.walk(memory, STATE, 0x8000, eptp=0x101E),
        fastmmu.walk_ept(memory, 0x101E, 0x123),
        fastmmu.translate(memory, STATE, [[0x123, 0x1123], [1 << 50, 5]]),
        rows,
        result,
        result.config,
        fastmmu.geometry("skylake", l1d="128/4"),
        fastmmu.geometry("skylake").l1d[0],
        fastmmu.CostModel.load(),
        fastmmu.Batch(np.zeros(3, np.uint8), np.ones(3, np.uint8), np.arange(3, dtype=np.uint64)),
        errors.TraceError("bad", path="a.xz", where="line 3"),
        errors.MissingExtraError("Reading", "arrow"),
    ):
        found.setdefault(type(value), []).append(value)
    return found


def made_up(cls: type) -> list[Any]:
    """Values of a class that takes anything: enumerations, named tuples, exceptions."""
    if issubclass(cls, enum.Enum):
        return list(cls)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return [cls(*range(len(cls._fields))), cls(*(None for _ in cls._fields))]
    if issubclass(cls, BaseException):
        return [cls("what, and what to do")]
    if dataclasses.is_dataclass(cls):  # with no look at what its fields are for
        bare = cls.__new__(cls)
        for number, each in enumerate(dataclasses.fields(cls)):
            object.__setattr__(bare, each.name, number)
        return [bare]
    return []


# ---- what is compared --------------------------------------------------------------------------------------------


def public(value: Any) -> dict[str, Any]:
    """What can be read of a value: its attributes and properties, and the value itself where it has an order of its
    own or is an array."""
    if isinstance(value, np.ndarray):
        names = ("truncated", "skipped", "faults")
        return {"rows": value.tolist(), "dtype": value.dtype, **{name: getattr(value, name, None) for name in names}}
    if isinstance(value, (enum.Enum, tuple)):
        return {"value": value}
    if dataclasses.is_dataclass(value) and not isinstance(value, fastmmu.Result):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    found: dict[str, Any] = {"args": value.args} if isinstance(value, BaseException) else {}
    for name in dir(value):
        if name.startswith("_") or (isinstance(value, BaseException) and hasattr(BaseException, name)):
            continue
        got = getattr(value, name)
        if not callable(got):
            found[name] = got
    return found


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, fastmmu.Pml):
        return isinstance(right, fastmmu.Pml) and (left.base, left.index) == (right.base, right.index)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and bool(left == right)


@pytest.mark.parametrize("how", COPIES)
def test_values_are_copied_and_pickled(how: str) -> None:
    explicit, tried = samples(), 0
    for cls in classes():
        for value in explicit.get(cls) or made_up(cls):
            other = COPIES[how](value)
            assert type(other) is cls
            want, have = public(value), public(other)
            assert want.keys() == have.keys(), cls
            for name in want:
                assert same(want[name], have[name]), (cls, name, want[name], have[name])
            if cls.__eq__ is not object.__eq__ and not isinstance(value, np.ndarray):
                assert other == value, cls
            if isinstance(value, fastmmu.Eptp) and value.pml is not None:
                assert (other.pml is value.pml) == (how == "copy")
            tried += 1
    assert explicit.keys() <= set(classes())
    assert tried > 150


VALUES = (fastmmu.GuestState, fastmmu.Mtrrs, fastmmu.Pml, fastmmu.Eptp, fastmmu.Npt, fastmmu.WalkResult,
          fastmmu.Translation)  # fmt: skip


def is_extension(cls: type) -> bool:
    """Cython made it, so that nothing is copied or pickled unless somebody said how."""
    return not str(importlib.import_module(cls.__module__).__file__).endswith(".py")


def resources() -> dict[type, Any]:
    config = fastmmu.Config(memory="64M", mmu="ept", tpr="flexpriority")
    machine = fastmmu.Machine(config, guest_kernel=False, state=STATE)
    memory = tables()
    found = [machine, machine.guest, machine.apic, machine.vmm, machine.tlb, memory, fastmmu.Host([(config, 1)])]
    found += [fastmmu.iter_mappings(memory, STATE), fastmmu.AddressSpace(memory, STATE), fastmmu.VpidAllocator()]
    found.append(fastmmu.AsidAllocator())
    return {type(each): each for each in found}


@pytest.mark.parametrize("how", COPIES)
def test_what_owns_memory_refuses(how: str) -> None:
    """A machine, a TLB, memory: one cannot come to have two owners by a copy."""
    for cls, each in resources().items():
        with pytest.raises(TypeError) as refused:
            COPIES[how](each)
        assert cls is not fastmmu.PhysicalMemory or "is a copy" in str(refused.value)
        assert cls not in VALUES


def test_every_extension_class_is_a_value_or_a_resource() -> None:
    """One that comes new is put to one of the tests."""
    exported = {found for name in fastmmu.__all__ if inspect.isclass(found := getattr(fastmmu, name))}
    extensions = {cls for cls in exported if is_extension(cls) and not issubclass(cls, (tuple, int, np.ndarray))}
    assert {cls.__name__ for cls in extensions - set(VALUES)} <= {cls.__name__ for cls in resources()}
    assert {cls.__name__ for cls in VALUES} <= {cls.__name__ for cls in extensions}


# ---- immutable ---------------------------------------------------------------------------------------------------

IMMUTABLE = (fastmmu.GuestState, fastmmu.Mtrrs, fastmmu.Eptp, fastmmu.Npt, fastmmu.WalkResult, fastmmu.Config,
             fastmmu.Geometry)  # fmt: skip


def writes(value: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Ways to write to a value: each attribute, each item of a mapping in it, each array."""
    for name, inside in public(value).items():
        yield f".{name} =", lambda name=name, inside=inside: setattr(value, name, inside)
        yield f"del .{name}", lambda name=name: delattr(value, name)
        if isinstance(inside, Mapping):
            for key in inside:
                yield f".{name}[{key!r}] =", lambda inside=inside, key=key: inside.__setitem__(key, 0)
            yield f".{name}.clear()", lambda inside=inside: inside.clear()
        elif isinstance(inside, np.ndarray) and inside.size:
            yield f".{name}[0] =", lambda inside=inside: inside.__setitem__(0, inside[0])
        elif isinstance(inside, list):
            yield f".{name}.append", lambda inside=inside: inside.append(0)
    if isinstance(value, fastmmu.GuestState):
        yield "a new attribute", lambda: setattr(value, "cr9", 1)


def is_refused(write: Callable[[], Any]) -> bool:
    try:
        write()
    except (AttributeError, TypeError, ValueError):
        return True
    return False


def test_what_is_immutable_refuses_writes() -> None:
    tried = 0
    for cls, values in samples().items():
        for value in values if cls in IMMUTABLE else ():
            for each in (value, copy.copy(value), pickle.loads(pickle.dumps(value))):
                before = repr(each)
                for what, write in writes(each):
                    assert is_refused(write), (cls, what)
                    tried += 1
                assert repr(each) == before
    assert tried > 500


def test_a_state_is_what_its_registers_say() -> None:
    """Walks, comparison, copies and pickles go by the same registers; nothing can drive them apart."""
    state = fastmmu.GuestState(cr3=0x1000)
    with pytest.raises(TypeError):
        state.registers["cr3"] = 0x2000  # type: ignore[index]
    memory = tables()
    other = pickle.loads(pickle.dumps(state))
    assert fastmmu.walk(memory, state, 0x123).pa == fastmmu.walk(memory, other, 0x123).pa == 0x5123
    assert state == other == state.replace() == fastmmu.GuestState(**state.registers)
    assert hash(state) == hash(other)
    for repeated in (fastmmu.GuestState, fastmmu.Mtrrs):
        assert dict(repeated().registers) == dict(pickle.loads(pickle.dumps(repeated())).registers)


def test_an_error_crosses_a_process() -> None:
    """A pool that cannot unpickle the error of a worker hangs."""
    for cls in classes():
        if issubclass(cls, fastmmu.FastmmuError):
            for error in samples().get(cls) or made_up(cls):
                other = pickle.loads(pickle.dumps(error))
                assert (str(other), vars(other)) == (str(error), vars(error))
