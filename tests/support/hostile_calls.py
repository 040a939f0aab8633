"""Every public callable with every hostile value: what it may raise, and that it neither crashes nor hangs.

    python -m tests.support.hostile_calls --calls 500000 --seed 1

The callables are found: the names in `__all__` of the packages, the public names of the compiled modules, the public
attributes of all these classes. Not among them are the command line, which has words for its errors, and `reference`,
which calls no kernel and says what it needs by assertions. Each is called with hostile values for one parameter at a
time, good ones for the rest, then with combinations at random.

Calls run in forked children. What a child is about to call stands in shared memory, so that a crash names it; a call
that takes longer than `LIMIT` seconds ends its child by SIGALRM, and counts as one that hangs.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import inspect
import itertools
import mmap
import os
import pickle
import pkgutil
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import fastmmu
from fastmmu import FastmmuError
from tests.support.hostile_objects import BY_CLASS, World, good
from tests.support.hostile_values import OwnError, everything, name_of

LIMIT = 20.0
BATCH = 400
"""Calls of a child, as far as the time allows; then a new world."""
SLOW = 0.02
"""Seconds of a call from which on a callable gets fewer of them."""
ALLOWED = (FastmmuError, TypeError, OwnError, StopIteration, OSError)
ASIDE = ("fastmmu.reference", "fastmmu.cli", "fastmmu.__main__")


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
    "==": lambda o, other: o == other, "in": lambda o, other: other in o, "[]": lambda o, other: item(o, other),
}  # fmt: skip


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
        if not inspect.isclass(value):
            required, optional = signature(value) or ((), ())
            found.append(Call(name, required, optional, lambda w, a, f=value: consumed(f(**a))))  # type: ignore[misc]
            continue
        required, optional = constructor(value)
        found.append(Call(f"{name}()", required, optional, lambda w, a, c=value: c(**a)))  # type: ignore[misc]
        found.append(Call(f"{name} __new__", (), (), lambda w, a, c=value: use(c.__new__(c))))  # type: ignore[misc]
        make = maker(name)
        if make is not None:
            found += of_object(name, value, make)
    return found


def maker(name: str) -> Callable[[World], Any] | None:
    """How an object of a class is made; None where that is not said: then it has nothing to be called."""
    return BY_CLASS.get(name) or BY_CLASS.get(name.rpartition(".")[2])


def of_object(name: str, cls: type, make: Callable[[World], Any]) -> Iterator[Call]:
    """Methods, properties and what Python itself asks of an object."""
    for special, ask in SPECIAL.items():
        yield Call(f"{name} {special}", (), (), lambda w, a, ask=ask: ask(make(w)))  # type: ignore[misc]
    for sign, compare in COMPARED.items():
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


# ---- calling ---------------------------------------------------------------------------------------------------------


VALUES = everything()


@dataclass(frozen=True)
class Planned:
    """A call with hostile values, as indices into VALUES, for some parameters."""

    call: Call
    hostile: tuple[tuple[str, int], ...]

    def words(self) -> str:
        given = ", ".join(f"{name}={name_of(VALUES[i][1])} [{VALUES[i][0]}]" for name, i in self.hostile)
        return f"{self.call.name}({given})"


def plan(call: Call, rng: random.Random, n: int) -> list[Planned]:
    """About `n` calls: each parameter with each value as far as `n` goes, then combinations."""
    if not call.parameters:
        return [Planned(call, ())]
    single = [Planned(call, ((name, i),)) for name in call.parameters for i in range(len(VALUES))]
    rng.shuffle(single)
    found = [Planned(call, ()), *single[:n]]
    while len(found) < n:
        chosen = rng.sample(call.parameters, rng.randint(1, min(4, len(call.parameters))))
        found.append(Planned(call, tuple((name, rng.randrange(len(VALUES))) for name in chosen)))
    return found


def arguments(planned: Planned, world: World) -> dict[str, Any]:
    hostile = {name: VALUES[i][1] for name, i in planned.hostile}
    missing = [name for name in planned.call.required if name not in hostile]
    return {name: good(world, planned.call.name, name) for name in missing} | hostile


@dataclass
class Report:
    """What came of a run."""

    calls: int = 0
    seconds: float = 0.0
    returned: int = 0
    wrong: list[str] = field(default_factory=list)
    base: dict[str, str] = field(default_factory=dict)
    """Callables that refuse good values: name → the error."""


def outcome(planned: Planned, world: World) -> str | None:
    """None where it returned; the name of an allowed error; "!..." of one that is not."""
    try:
        planned.call.do(world, arguments(planned, world))
    except ALLOWED as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return f"!{planned.words()} raised {type(error).__name__} at {place}: {str(error)[:160]}"
    return None


def child(batch: list[Planned], seed: int, shared: mmap.mmap, out: int) -> None:
    """Runs in a child of its own; `shared`: number of the call under way."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdin.close()
    world = World(seed)
    started = time.perf_counter()
    for i, planned in enumerate(batch):
        shared[:8] = i.to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        found = outcome(planned, world)
        signal.setitimer(signal.ITIMER_REAL, 0)
        line = f"{i}\t{time.perf_counter() - started:.6f}\t{'' if found is None else ' '.join(found.split())}\n"
        os.write(out, line.encode("utf-8", "backslashreplace"))


def run_batch(batch: list[Planned], seed: int, report: Report) -> float:
    """Runs a batch in children, a new one behind each crash; the seconds that it took."""
    begun = time.perf_counter()
    shared = mmap.mmap(-1, 4096)
    while batch:
        reader, writer = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reader)
                child(batch, seed, shared, writer)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as lines:
            for line in lines:
                number, _, what = line.rstrip("\n").split("\t", 2)
                report.calls += 1
                report.returned += not what
                if what.startswith("!"):
                    report.wrong.append(what[1:])
                elif what and not batch[int(number)].hostile and " " not in batch[int(number)].call.name:
                    report.base[batch[int(number)].call.name] = what
        _, status = os.waitpid(pid, 0)
        if status == 0:
            break
        at = int.from_bytes(shared[:8], "little")
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        how = "hangs" if number == signal.SIGALRM else f"ends the process: signal {number}, status {status}"
        report.calls += 1
        report.wrong.append(f"{batch[at].words()} {how}")
        batch = batch[at + 1 :]
    shared.close()
    return time.perf_counter() - begun


def run(n: int, seed: int, *, only: str = "", progress: Callable[[str], None] | None = None) -> Report:
    """About `n` calls, shared out among the callables; those that are slow get fewer."""
    report, rng = Report(), random.Random(seed)
    chosen = [call for call in calls() if only in call.name]
    share = max(2, n // max(1, sum(min(len(call.parameters), 6) for call in chosen)))
    begun = time.perf_counter()
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)  # for those that write files
        try:
            for number, call in enumerate(chosen):
                planned = plan(call, rng, share * min(len(call.parameters), 6))
                first, rest = planned[:8], planned[8:]
                each = run_batch(first, seed + number, report) / len(first)
                if each > SLOW:
                    rest = rest[: int(len(rest) * SLOW / each)]
                for at in range(0, len(rest), BATCH):
                    run_batch(rest[at : at + BATCH], seed + number + at, report)
                if progress is not None:
                    progress(f"{call.name}: {report.calls:,} calls, {len(report.wrong)} wrong")
        finally:
            os.chdir(home)
    report.seconds = time.perf_counter() - begun
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500_000, help="about so many calls (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="only callables whose name has this in it")
    parser.add_argument("--verbose", action="store_true", help="a line for each callable")
    args = parser.parse_args()
    done = run(args.calls, args.seed, only=args.only, progress=print if args.verbose else None)
    for line in sorted(set(done.wrong)):
        print(f"WRONG {line}")
    for name, error in sorted(done.base.items()):
        print(f"refuses good values: {name}: {error}")
    n = len({call.name for call in calls()})
    print(f"{done.calls:,} calls of {n} public callables in {done.seconds:.0f} s: {done.returned:,} returned, "
          f"{len(done.wrong):,} raised another error, crashed or hung")  # fmt: skip
    return 1 if done.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
