"""An experiment is run: figures by name, and what its checks make of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel
from fastmmu.machine.side_by_side import each
from fastmmu.study.named.description import POINT_FIGURES, Check, Experiment, read_experiment
from fastmmu.study.named.walks import walked
from fastmmu.study.named.workloads import trace_of
from fastmmu.study.sweep.columns import columns, row_of
from fastmmu.study.sweep.run import Study
from fastmmu.study.sweep.work import GivenTrace
from fastmmu.study.vpid.run import vpid_points
from fastmmu.trace.identity import Identified, identified

__all__ = ["Finding", "Findings", "figures_of", "found_by", "named_study"]

Told = Callable[[str, float | None, int], None]
"""Told what runs, the part of it that is done (None: unknown), and the events."""

_UNKNOWN = dict.fromkeys(("key", "study", "cost_model", "seed", "fastmmu", "host"))


@dataclass(frozen=True)
class Finding:
    """One check: our figure (None: not modelled), and whether it holds (None: nothing is asserted)."""

    check: Check
    ours: float | None
    holds: bool | None

    @property
    def verdict(self) -> str:
        """For people."""
        if self.ours is None:
            return "not modelled"
        return "not asserted" if self.holds is None else "yes" if self.holds else "no"

    @property
    def place(self) -> str:
        """Of a published range: below, inside, above; "" of anything else."""
        low, high = self.check.low, self.check.high
        if self.ours is None or low is None or high is None or low == high:
            return ""
        return "below" if self.ours < low else "above" if self.ours > high else "inside"


@dataclass(frozen=True, repr=False)
class Findings:
    """What an experiment came to.

    Threads: immutable; share it.
    """

    experiment: Experiment
    findings: tuple[Finding, ...]
    figures: Mapping[str, Any]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """Those that do not hold."""
        return tuple(finding for finding in self.findings if finding.holds is False)

    @property
    def holds(self) -> bool:
        """Whether all that is asserted holds."""
        return not self.failed

    def __repr__(self) -> str:
        """Name, and whether it holds."""
        from fastmmu.study.named.table import verdict

        return f"<Findings of {self.experiment.name}: {verdict(self)}>"

    def _repr_html_(self) -> str:
        """For notebooks: a row a check."""
        from fastmmu.study.named.table import findings_html

        return findings_html(self)


@checked
def named_study(
    name: str,
    *,
    costs: CostModel | None = None,
    jobs: int | None = None,
    results: str | os.PathLike[str] | None = None,
    progress: Callable[[str, float | None, int], None] | None = None,
) -> Findings:
    """Run an experiment of the literature.

    >>> found = fastmmu.study.named_study("two-dimensional-walk")
    >>> found.holds, [(finding.check.what, finding.ours) for finding in found.findings]

    :param name: of :func:`experiments`, or the path of a TOML of one's own (docs/experiments.md).
    :param costs: cost model, of modelled cycles. :param jobs: threads, None: one a processor. No result depends on it.
    :param results: folder that keeps the runs, as of a :class:`Study`: what is there is not made again.
    :raises ConfigError: there is none of this name, or its file is none. :raises TraceError: a trace cannot be read.
    """
    experiment = read_experiment(name)
    figures: dict[str, Any] = {}
    for _ in figures_of(experiment, figures, costs=costs, jobs=jobs, results=results, progress=progress):
        pass
    return found_by(experiment, figures)


def found_by(experiment: Experiment, figures: Mapping[str, Any]) -> Findings:
    """What the checks make of figures.

    :raises ConfigError: a check cannot be made, as it divides by what did not happen.
    """
    findings = []
    for check in experiment.checks:
        try:
            ours = None if check.ours is None else float(check.ours.value(figures))
            known = {**figures, "ours": ours, "low": check.low, "high": check.high}
            holds = None if check.holds is None else bool(check.holds.value(known))
        except ConfigError as error:
            raise ConfigError(f"{experiment.name}: {check.what}: {error}") from error
        findings.append(Finding(check, ours, holds))
    return Findings(experiment, tuple(findings), dict(figures))


# ---- figures -----------------------------------------------------------------------------------------------------


def figures_of(
    experiment: Experiment,
    figures: dict[str, Any],
    *,
    costs: CostModel | None = None,
    jobs: int | None = None,
    results: str | os.PathLike[str] | None = None,
    progress: Told | None = None,
) -> Iterator[str]:
    """Put every figure that a check uses into `figures`; gives the name of each thing that is done."""
    tell = progress or _silent
    for name, walks in experiment.walks.items():
        tell(f"{experiment.name}: {name}", None, 0)
        figures.update({f"{name}.{figure}": value for figure, value in walked(walks).items()})
        yield name
    for name in experiment.traces:
        configs = _needed(experiment, name)
        points = {key: point for key, point in experiment.points.items() if point.trace == name}
        if not configs and not points:
            continue
        trace = identified(trace_of(experiment.traces[name]))
        made = _kept if results is not None else _made
        if configs:
            for key, row in made(experiment, name, trace, configs, costs, jobs, results, tell):
                figures.update({f"{name}.{key}.{column}": value for column, value in row.items()})
                yield f"{name}.{key}"
        for key, point in points.items():

            def done(_: float, events: int, key: str = key, trace: Identified = trace) -> None:
                tell(f"{experiment.name}: {key}", trace.progress(), events)

            (found,) = vpid_points(trace, Config(mmu="ept"), [point.rate], progress=done, jobs=jobs)
            figures.update({f"{key}.{figure}": getattr(found, figure) for figure in POINT_FIGURES})
            yield key


def _silent(what: str, part: float | None, events: int) -> None:
    pass


def _needed(experiment: Experiment, trace: str) -> dict[str, Config]:
    """The configurations that the checks name with a trace, in their order."""
    both = [check.ours for check in experiment.checks] + [check.holds for check in experiment.checks]
    names = {name for expression in both if expression is not None for name in expression.names}
    return {
        key: config
        for key, config in experiment.configs.items()
        if any(name.startswith(f"{trace}.{key}.") for name in names)
    }


_Rows = Iterator[tuple[str, dict[str, Any]]]


def _made(
    experiment: Experiment, name: str, trace: Identified, configs: dict[str, Config], costs: CostModel | None,
    jobs: int | None, results: Any, tell: Told,
) -> _Rows:  # fmt: skip
    """The row of each run, side by side in one pass."""

    def done(config: Config, events: int) -> None:
        tell(f"{experiment.name}: {name}", events / trace.total if trace.total else trace.progress(), events)

    warm_up = experiment.traces[name].warm_up
    found = each(trace, list(configs.values()), costs=costs, progress=done, jobs=jobs, warm_up=warm_up)
    for key, result in zip(configs, found, strict=True):
        yield key, row_of(result, _UNKNOWN)


def _kept(
    experiment: Experiment, name: str, trace: Identified, configs: dict[str, Config], costs: CostModel | None,
    jobs: int | None, results: Any, tell: Told,
) -> _Rows:  # fmt: skip
    """The same, of a study in a folder, which makes only what is not there."""
    priced = {"default": costs or CostModel.load()}
    given = GivenTrace(trace.inner, experiment.traces[name].warm_up)
    study = Study({name: given}, configs.values(), costs=priced, results=results, name=experiment.name)
    study.run(
        "threads", jobs=jobs, progress=lambda done, runs, last: tell(f"{experiment.name}: {last}", done / runs, done)
    )
    table = study.results()
    rows = {run.config: row for run, row in zip(study.plan(), table.to_pylist(), strict=True)}
    for key, config in configs.items():
        yield key, {column: rows[config][column] for column in columns()}
