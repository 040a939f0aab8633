"""What a worker does, in whatever process: one trace under one configuration, priced by each cost model.

A worker opens a trace by its path or URL once, and keeps the last ones; what lies in memory comes with the task.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from fastmmu.errors import CheckpointError, MissingExtraError, StudyError
from fastmmu.machine.checkpoint.runs import Checkpoint, Keeper
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel, cycles
from fastmmu.machine.region import Region, running_in
from fastmmu.machine.result import Result
from fastmmu.machine.running import Resumable, Running
from fastmmu.trace.base import Trace
from fastmmu.trace.identity import Identified

__all__ = [
    "GivenTrace",
    "Task",
    "TraceSpec",
    "code",
    "content_of",
    "given_up",
    "open_trace",
    "placed",
    "policy_source",
    "run_task",
]

KEPT = 4
"""Traces that a worker keeps open."""


@dataclass(frozen=True)
class TraceSpec:
    """A trace by its file, its URL, or the name of a bundled one; the same in every process. warm_up: accesses that
    are run and not counted."""

    path: str
    format: str | None = None
    columns: str | None = None
    limit: int | None = None
    data_only: bool = False
    warm_up: int = 0

    def open(self) -> Trace:
        from fastmmu.cli.options import named_trace

        trace = named_trace(_local(self.path), self.format, columns=self.columns)
        if self.data_only:
            trace = trace.data_only()
        return trace if self.limit is None else trace.head(self.limit)


@dataclass(frozen=True, eq=False)
class GivenTrace:
    """A trace that the caller has: it goes to the workers as it is."""

    trace: Trace
    warm_up: int = 0

    def open(self) -> Trace:
        return self.trace


@dataclass(frozen=True)
class Task:
    """One run: what it is, and what it must turn out to be. content: hash of the trace's events; code: of the package
    that planned it; checkpoint: where it keeps how far it came."""

    trace: str
    content: str
    config: Config
    costs: dict[str, CostModel]
    code: str
    checkpoint: Checkpoint | None = None


def placed(path: str) -> str:
    """A file by its whole path, for workers that are elsewhere; a URL, or the name of a bundled trace, as it is."""
    return os.path.abspath(path) if "://" not in path and os.path.exists(path) else path


def _local(path: str) -> str:
    """A file of this machine; a URL is fetched once, by fsspec."""
    if "://" not in path:
        return path
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError(f"a trace at {path}", "cluster") from error
    try:
        found: str = fsspec.open_local(path if "::" in path else f"simplecache::{path}")
    except Exception as error:  # of any of its file systems
        raise StudyError(f"{path}: it cannot be fetched: {type(error).__name__}: {error}") from error
    return found


given_up = threading.Event()
"""Runs in threads of this process are to end."""


class _Opened(threading.local):
    """The last traces of each thread: the content of one is made anew in each pass."""

    def __init__(self) -> None:
        self.traces: OrderedDict[object, Identified] = OrderedDict()


_opened = _Opened()


def open_trace(spec: TraceSpec | GivenTrace, key: object = None) -> Identified:
    """The trace, one of the last ones or opened anew. key: of what lies in memory, its content."""
    key = spec if key is None else key
    traces = _opened.traces
    if key not in traces:
        traces[key] = Identified(spec.open())
        if len(traces) > KEPT:
            traces.popitem(last=False)
    traces.move_to_end(key)
    return traces[key]


def content_of(spec: TraceSpec | GivenTrace, progress: Callable[[float | None, int], None]) -> tuple[str, int]:
    """Hash of the events of a trace, and how many there are."""
    trace = Identified(spec.open())
    events = 0
    for batch in trace.batches():
        events += len(batch)
        progress(events / trace.total if trace.total else trace.progress(), events)
    return trace.content, events


def run_task(task: Task, spec: TraceSpec | GivenTrace) -> tuple[str, list[tuple[str, Result]]]:
    """Name of the machine, and of each cost model the result at its prices; of a single run.

    :raises StudyError: the trace, or this package, is not what the study was planned with.
    """
    if task.code != code():
        raise StudyError(
            "a worker has another version of fastmmu than the study was planned with; install the same one"
        )
    trace = open_trace(spec, task.content if isinstance(spec, GivenTrace) else None)
    run, blocks = _begun(trace, task, spec.warm_up)
    for block in blocks:
        if given_up.is_set():
            raise StudyError("given up")
        run.take(block)
    result = run.result(complete=True)
    if trace.content != task.content:
        raise StudyError(
            f"trace {task.trace}: its events are not those that the study was planned with (content {trace.content}, "
            f"planned {task.content}); start again, so that the file as it is now is taken"
        )
    result = replace(result, trace=task.trace, content=task.content)
    return platform.node(), [(name, _priced(result, costs)) for name, costs in task.costs.items()]


def _begun(trace: Identified, task: Task, warm_up: int) -> tuple[Running, Iterator[Any]]:
    """The run, and what it has to do yet. A checkpoint that cannot be gone on from is none."""
    first = next(iter(task.costs.values()))
    run = running_in(trace, task.config, Region(warm_up), costs=first)
    if task.checkpoint is None:
        return run, trace.batches()
    path = Path(task.checkpoint.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        keeper = Keeper(cast(Resumable, run), task.checkpoint, task.config, region=(warm_up, None))
    except CheckpointError:
        path.unlink()
        run = running_in(trace, task.config, Region(warm_up), costs=first)
        keeper = Keeper(cast(Resumable, run), task.checkpoint, task.config, region=(warm_up, None))
    return run, keeper.rest(trace.batches())


def _priced(result: Result, costs: CostModel) -> Result:
    by_cause = cycles(result.counters, result.config, costs)
    return replace(result, cycles=float(sum(by_cause.values())), cycles_by=by_cause, costs=costs.identity)


@cache
def code() -> str:
    """Version of this package, with a hash of its sources, so that a changed tree is another version."""
    import fastmmu

    sums = hashlib.blake2b(digest_size=6)
    root = Path(fastmmu.__file__).parent
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".pyx", ".pxd", ".toml")):
        sums.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{fastmmu.__version__}+{sums.hexdigest()}"


def policy_source(vmm: Any) -> str:
    """What a VMM in Python is: its name and the text of its module, which a study's key goes by."""
    if isinstance(vmm, str):
        return vmm
    found = importlib.util.find_spec(vmm.__module__) if vmm.__module__ != "__main__" else None
    text = Path(found.origin).read_bytes() if found and found.origin and os.path.exists(found.origin) else b""
    return f"{vmm.__module__}:{vmm.__qualname__}:{hashlib.blake2b(text, digest_size=8).hexdigest()}"
