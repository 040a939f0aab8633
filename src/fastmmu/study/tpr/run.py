"""One workload with the TPR handled in each way, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel
from fastmmu.machine.result import Result
from fastmmu.machine.side_by_side import each
from fastmmu.study.schemes import TPR as WAYS
from fastmmu.study.schemes import fields_of
from fastmmu.trace.identity import AnyTrace, identified, opened
from fastmmu.trace.tpr import TprProfile, tpr_profile, with_tpr

__all__ = ["WAYS", "tpr_configurations", "tpr_runs", "tpr_study"]


@checked
def tpr_configurations(ways: Iterable[str], handler: str, **config: Any) -> list[Config]:
    """The configurations of a study, in order.

    :raises ConfigError: an unknown way, or a field of `config` with a bad value.
    """
    found = []
    for way in ways:
        fields = {"mmu": "ept", "vpid": True, "memory": "2G", "guest_handler": handler, **config}
        fields |= fields_of(way, WAYS, "way to handle the TPR")
        if way == "native":
            fields["vpid"] = False
        try:
            found.append(Config(**fields))
        except TypeError as error:
            raise ConfigError(f"Config: {error}; see help(fastmmu.Config)") from error
    return found


@checked
def tpr_study(
    trace: AnyTrace,
    workload: TprProfile | str = "winxp",
    ways: Iterable[str] = tuple(WAYS),
    *,
    costs: CostModel | None = None,
    progress: Callable[[Config, int], None] | None = None,
    jobs: int | None = None,
    **config: Any,
) -> list[Result]:
    """Run a trace with the TPR traffic of a workload, in each way of handling the TPR.

    >>> results = fastmmu.tpr_study(fastmmu.read_trace("app.lackey.xz"), "winxp")

    :param workload: name or :class:`~fastmmu.trace.tpr.TprProfile`. :param ways: names out of ``study.schemes.TPR``.
    :param config: other fields of :class:`Config`; default ``mmu="ept", vpid=True, memory="2G"``.
    :param jobs: threads, None: one a processor. No result depends on it.
    :returns: a result each, in the order given. :raises ConfigError: an unknown name or field.
    """
    return list(tpr_runs(trace, workload, ways, costs=costs, progress=progress, jobs=jobs, **config))


def tpr_runs(
    trace: AnyTrace,
    workload: TprProfile | str = "winxp",
    ways: Iterable[str] = tuple(WAYS),
    *,
    costs: CostModel | None = None,
    progress: Callable[[Config, int], None] | None = None,
    jobs: int | None = None,
    **config: Any,
) -> Iterator[Result]:
    """The results of :func:`tpr_study`, one after the other, as they are finished."""
    profile = tpr_profile(workload) if isinstance(workload, str) else workload
    source = identified(with_tpr(opened(trace), profile))
    configs = tpr_configurations(ways, profile.handler, **config)
    yield from each(source, configs, costs=costs, progress=progress, jobs=jobs)
