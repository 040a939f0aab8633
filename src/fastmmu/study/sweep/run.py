"""A study: what is to be run, what of it is there, and the running of the rest."""

from __future__ import annotations

import hashlib
import html
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastmmu._arguments import shown
from fastmmu._checked import checked, checked_but
from fastmmu.errors import ConfigError, WrongTypeError
from fastmmu.machine.checkpoint.runs import Checkpoint
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel
from fastmmu.machine.simulate import simulate
from fastmmu.study.sweep.description import read_description
from fastmmu.study.sweep.drive import Drive, Progress
from fastmmu.study.sweep.executors import opened
from fastmmu.study.sweep.store import Store
from fastmmu.study.sweep.work import GivenTrace, Task, TraceSpec, code, content_of, placed, policy_source
from fastmmu.trace import Trace, bundled
from fastmmu.trace.identity import AnyTrace
from fastmmu.trace.identity import opened as trace_of

__all__ = ["PlannedRun", "Study"]

Reading = Callable[[str, float | None, int], None]
"""Told, while traces are read: which one, the fraction done (None: unknown), events until now."""

T = TypeVar("T")
PROBE = 100_000
"""Events of a trace by which the time of a run is estimated."""


@dataclass(frozen=True)
class PlannedRun:
    """A run: names of trace and cost model, the configuration, and the key of what determines its result."""

    trace: str
    config: Config
    costs: str
    key: str


class Study:
    """Traces × configurations × cost models, whose results lie in a folder.

    >>> study = fastmmu.Study({"sqlite": "sqlite"}, [Config(), Config(mmu="ept")], results="sizes.results")
    >>> study.run()
    >>> study.results().to_pandas()

    A run is known by the key of what determines it: the content of the trace, the configuration, the cost model and the
    code of this package. One that was finished is not made again, whoever made it and whenever.

    :param traces: name → a trace, or its path, URL (with the extra ``cluster``) or bundled name. Those given by path or
        URL are opened by each worker; others go to the workers as they are. :param configs: what each trace runs under.
    :param costs: name → cost model, None: the default one. :param results: the folder, made where there is none.
    :param name, seed: columns of the results. :param checkpoint_every: runs keep how far they came after every so many
        events, in the folder, which workers must reach, and go on from there; None: they do not.
    :raises ConfigError: there is no trace or no configuration. :raises TraceError: a trace is none.

    Threads: of one thread. Several processes may share the folder one after the other.
    """

    @checked_but("configs", "costs", "traces")
    def __init__(
        self,
        traces: Mapping[str, AnyTrace | TraceSpec | GivenTrace],
        configs: Iterable[Config],
        *,
        costs: Mapping[str, CostModel] | None = None,
        results: str | os.PathLike[str],
        name: str = "study",
        seed: int = 0,
        checkpoint_every: int | None = None,
    ) -> None:
        if checkpoint_every is not None and checkpoint_every < 1:
            raise ConfigError(
                f"checkpoint_every={checkpoint_every}: give the events between two checkpoints, 1 or more"
            )
        self.name, self.seed, self.checkpoint_every = name, seed, checkpoint_every
        self.traces = {called: _spec(trace) for called, trace in _named("traces", traces).items()}
        self.configs = tuple(dict.fromkeys(_all_of("configs", configs, Config)))
        priced = _named("costs", {"default": CostModel.load()} if costs is None else costs)
        self.costs = dict(zip(priced, _all_of("costs", priced.values(), CostModel), strict=True))
        for what, things in (("trace", self.traces), ("configuration", self.configs), ("cost model", self.costs)):
            if not things:
                raise ConfigError(f"a study without a {what} runs nothing; give at least one")
        self.store = Store(results)
        self.text = ""
        self._plan: tuple[PlannedRun, ...] = ()
        self._contents: dict[str, tuple[str, int]] = {}

    @classmethod
    @checked
    def read(cls, path: str | os.PathLike[str], *, results: str | os.PathLike[str] | None = None) -> Study:
        """The study of a file (docs/studies.md), checked whole before anything runs.

        :param results: folder in place of the file's own, which is beside it.
        :raises ConfigError: names file, key, value and what there is. :raises OSError: it cannot be read.
        """
        said = read_description(path)
        study = cls(said.traces, said.configs, costs=said.costs, results=results or said.results, name=said.name,
                    seed=said.seed, checkpoint_every=said.checkpoint_every)  # fmt: skip
        study.text = said.text
        return study

    def __repr__(self) -> str:
        """How much it is, and where its results lie."""
        runs = len(self.traces) * len(self.configs) * len(self.costs)
        return f"<Study {self.name!r}: {runs} runs, results in {self.store.folder}>"

    def _repr_html_(self) -> str:
        """For notebooks: the finished runs."""
        from fastmmu.report.page import table_html
        from fastmmu.report.stored import load

        text = html.escape(repr(self))
        return f"<p>{text}</p>" + (table_html(load(self.store.folder)) if self.store.finished() else "")

    # ---- what there is to do -------------------------------------------------------------------------------------

    def plan(self, progress: Reading | None = None) -> tuple[PlannedRun, ...]:
        """All runs, traces outermost, then configurations, then cost models. Traces are read once, for their content.

        :raises TraceError: a trace cannot be read.
        """
        if not self._plan:
            self._read(progress)
            self._plan = tuple(
                PlannedRun(trace, config, costs, self._key(trace, config, model))
                for trace in self.traces
                for config in self.configs
                for costs, model in self.costs.items()
            )
        return self._plan

    @property
    def planned(self) -> bool:
        """The traces were read, so that :meth:`plan` takes no time."""
        return bool(self._plan)

    def missing(self) -> list[PlannedRun]:
        """Runs that are not finished."""
        there = self.store.finished()
        return [run for run in self.plan() if run.key not in there]

    @checked
    def events(self, trace: str) -> int:
        """Events of a trace, by its name."""
        self.plan()
        if trace not in self._contents:
            raise ConfigError(f"trace {trace!r} is none of this study; there are {', '.join(self.traces)}")
        return self._contents[trace][1]

    def _key(self, trace: str, config: Config, costs: CostModel) -> str:
        fields = {**config.fields(), "vmm": policy_source(config.vmm)}
        what = [self._contents[trace][0], fields, costs.identity, self.seed, code(), self.traces[trace].warm_up]
        return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=12).hexdigest()

    def _read(self, progress: Reading | None) -> None:
        noted = self.store.contents()
        for name, spec in self.traces.items():
            stamp = _stamp(spec)
            known = noted.get(repr(spec))
            if stamp is not None and isinstance(known, dict) and known.get("stamp") == stamp:
                self._contents[name] = str(known["content"]), int(known["events"])
                continue
            found = content_of(spec, partial(progress or _silent, name))
            self._contents[name] = found
            if stamp is not None:
                noted[repr(spec)] = {"stamp": stamp, "content": found[0], "events": found[1]}

    def _note(self) -> None:
        noted = self.store.contents()
        for name, spec in self.traces.items():
            if (stamp := _stamp(spec)) is not None:
                content, events = self._contents[name]
                noted[repr(spec)] = {"stamp": stamp, "content": content, "events": events}
        self.store.note(self.text)
        self.store.note_contents(noted)

    def estimate(self, runs: Iterable[PlannedRun] | None = None) -> float:
        """Seconds that runs take one after the other, by the first events of each trace under one configuration of each
        kind; None: those that are missing. A guess: the first events fault more than later ones."""
        chosen = self.missing() if runs is None else _all_of("runs", runs, PlannedRun)
        wanted = {(run.trace, run.config) for run in chosen}
        rates: dict[tuple[str, str, bool, str], float] = {}
        total = 0.0
        for trace, config in sorted(wanted, key=lambda one: one[0]):
            kind = (trace, config.mmu, config.vpid, str(config.vmm))
            if kind not in rates:
                head = self.traces[trace].open().head(PROBE)
                began = time.perf_counter()
                ran = simulate(head, config)
                rates[kind] = (time.perf_counter() - began) / max(1, ran.counters["accesses"])
            total += rates[kind] * self.events(trace)
        return total

    # ---- doing it ------------------------------------------------------------------------------------------------

    @checked_but("executor", "progress")
    def run(
        self, executor: str | Executor | Any = "processes", *, jobs: int | None = None, progress: Progress | None = None
    ) -> int:
        """Make the runs that are missing; returns how many were made. Each is kept as soon as it is finished, whatever
        becomes of the others.

        :param executor: "processes", "threads", "dask:ADDRESS", "ray", "slurm", "mpi", "MODULE:NAME", or anything with
            `submit` (:mod:`fastmmu.study.sweep.executors`). No result depends on it. :param jobs: processes.
        :param progress: called now and then, and after each run: runs finished, runs in all, the name of the last one.
        :raises StudyError: runs failed, or another process writes to the folder. :raises OSError: a result cannot be
            written. :raises MissingExtraError: a package of the executor is not installed.
        """
        self.plan()
        with self.store.locked():
            self._note()
            missing = self.missing()
            if not missing:
                return 0
            with opened(executor, jobs) as pool:
                drive = Drive(pool, self._tasks(missing), self._keep, len(self.plan()), len(missing), progress)
                drive.run()
            return drive.made

    def _tasks(self, runs: list[PlannedRun]) -> list[tuple[Task, TraceSpec | GivenTrace]]:
        """Runs that differ in their cost model alone are one."""
        together: dict[tuple[str, Config], dict[str, CostModel]] = {}
        for run in runs:
            together.setdefault((run.trace, run.config), {})[run.costs] = self.costs[run.costs]
        return [
            (
                Task(trace, self._contents[trace][0], config, costs, code(), self._kept(trace, config)),
                self.traces[trace],
            )
            for (trace, config), costs in together.items()
        ]

    def _kept(self, trace: str, config: Config) -> Checkpoint | None:
        """Where a run keeps how far it came."""
        if self.checkpoint_every is None:
            return None
        key = self._key(trace, config, next(iter(self.costs.values())))
        return Checkpoint(os.path.abspath(self.store.folder / "checkpoints" / f"{key}.ckpt"), self.checkpoint_every)

    def _keep(self, task: Task, made: tuple[str, list[tuple[str, Any]]]) -> int:
        from fastmmu.study.sweep.columns import row_of

        host, results = made
        for costs, result in results:
            key = self._key(task.trace, task.config, self.costs[costs])
            about = {"key": key, "study": self.name, "cost_model": costs, "seed": self.seed, "fastmmu": task.code,
                     "host": host}  # fmt: skip
            self.store.put(row_of(result, about))
        if task.checkpoint is not None:
            Path(task.checkpoint.path).unlink(missing_ok=True)
        return len(results)

    def results(self) -> Any:
        """A pyarrow.Table of this study's finished runs, a row each, in the order of :meth:`plan`.

        Columns: ``key``, ``study``, ``trace``, ``path``, ``content``, ``scheme``, the fields of :class:`Config` (sizes
        in bytes), ``geometry``, ``cost_model``, ``costs`` (identity), ``first`` (accesses of a warm-up), the counters,
        ``exits_REASON``, ``cycles``, ``cycles_CAUSE``, ``cycles_exit_KIND``, ``cycles_per_access``, ``mpki``,
        ``mpki_STRUCTURE``, ``RATE_pki``, ``walk_share``, ``overlap``, ``fetch_cycles``, ``walk_cycles``,
        ``walk_pSHARE``, ``found_TABLES_LEVEL``, ``notes``, ``seconds``, ``seed``, ``fastmmu`` (version and hash of the
        sources), ``host``. All runs of all studies in the folder: ``pandas.read_parquet(folder / "runs")``.

        :raises MissingExtraError: pyarrow is not installed.
        """
        return self.store.table(run.key for run in self.plan())


def _all_of(name: str, things: Any, kind: type[T]) -> list[T]:
    """Things of a kind, in a list."""
    if isinstance(things, (str, bytes)) or not isinstance(things, Iterable):
        raise WrongTypeError(f"{name} must be a sequence of {kind.__name__}, not {shown(things)}")
    found: list[T] = []
    for thing in things:  # the first wrong one ends it, however many there are
        if not isinstance(thing, kind):
            raise WrongTypeError(f"{name} must be a sequence of {kind.__name__}; there is {shown(thing)} in it")
        found.append(thing)
    return found


def _named(name: str, things: Any) -> dict[str, Any]:
    """Things by their names."""
    if not isinstance(things, Mapping) or not all(isinstance(each, str) for each in things):
        raise WrongTypeError(f"{name} must be a mapping of names, not {shown(things)}")
    return dict(things)


def _silent(name: str, part: float | None, events: int) -> None:
    pass


def _spec(trace: AnyTrace | TraceSpec | GivenTrace) -> TraceSpec | GivenTrace:
    if isinstance(trace, (TraceSpec, GivenTrace)):
        return trace
    if isinstance(trace, (str, os.PathLike)):
        return TraceSpec(placed(os.fspath(trace)))
    return GivenTrace(trace if isinstance(trace, Trace) else trace_of(trace))


def _stamp(spec: TraceSpec | GivenTrace) -> list[int] | None:
    """Size and time of the file, which may be a bundled one; None: it may change unseen."""
    if isinstance(spec, GivenTrace):
        return None
    path = Path(spec.path)
    if not path.exists():
        path = Path(bundled().get(spec.path, path))
    if not path.is_file():
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
