"""One trace under several schemes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastmmu._checked import checked
from fastmmu.errors import ConfigError
from fastmmu.machine.config import Config
from fastmmu.machine.costs import CostModel
from fastmmu.machine.result import Result
from fastmmu.machine.side_by_side import each
from fastmmu.machine.simulate import Progress
from fastmmu.study.schemes import COMPARE as SCHEMES
from fastmmu.study.schemes import USUAL, fields_of
from fastmmu.trace.identity import AnyTrace, identified, opened

__all__ = ["SCHEMES", "compare", "configurations", "each"]


@checked
def configurations(
    schemes: Iterable[str] = USUAL,
    pages: Iterable[str] = ("4k",),
    kvm: str | Iterable[str] = ("slides",),
    **config: Any,
) -> list[Config]:
    """The configurations of a comparison: each scheme with each page size and each version of KVM, native runs with
    the first, in the order of the table. What the guest kernel makes huge (`thp`, `defrag`) is of pages "thp" alone.

    :raises ConfigError: an unknown scheme, or a field of `config` with a bad value.
    """
    chosen = [fields_of(scheme.strip().lower(), SCHEMES) for scheme in schemes]
    for field in ("mmu", "vpid"):
        if field in config:
            raise ConfigError(f"{field} is what a comparison varies; choose schemes= from {', '.join(SCHEMES)}")
    pages = list(pages)
    more: dict[str, dict[str, Any]] = {page: {} for page in pages}
    if "thp" in more:
        more["thp"] = {name: config.pop(name) for name in ("thp", "defrag") if name in config}
    try:
        base = Config(**config)
    except TypeError as error:  # an unknown field
        raise ConfigError(f"Config: {error}; see help(fastmmu.Config)") from error
    versions = [kvm] if isinstance(kvm, str) else list(kvm)
    return [
        base.replace(**{"pages": page, "kvm": version, **more[page], **scheme})
        for page in pages
        for scheme in chosen
        for version in (versions[:1] if scheme["mmu"] == "native" else versions)
    ]


@checked
def compare(
    trace: AnyTrace,
    schemes: Iterable[str] = USUAL,
    pages: Iterable[str] = ("4k",),
    kvm: str | Iterable[str] = ("slides",),
    *,
    costs: CostModel | None = None,
    progress: Progress | None = None,
    jobs: int | None = None,
    **config: Any,
) -> list[Result]:
    """Simulate a trace under several schemes, in one pass over it and several threads.

    >>> results = fastmmu.compare("sort.lackey.xz", schemes=("native", "ept+vpid"), pages=("4k", "thp"))
    >>> print(fastmmu.report.comparison(results))  # after import fastmmu.report

    :param trace: a trace, the path of one, or a 1-D array of linear addresses.
    :param schemes: names out of ``study.schemes.COMPARE``; default all without agile paging.
    :param pages: "4k", "2m", "thp"; each is run under each scheme. :param kvm: versions of KVM (``Config.kvm``), each
        is run with each scheme but native. :param config: other fields of :class:`Config`.
    :param jobs: threads, None: one a processor. No result depends on it.
    :returns: a result each, pages outermost, in the order given.
    :raises ConfigError: an unknown scheme or field. :raises TraceError: the trace cannot be read.
    """
    source = opened(trace)
    source = source if source.kind == "system" else identified(source)
    return list(each(source, configurations(schemes, pages, kvm, **config), costs=costs, progress=progress, jobs=jobs))
