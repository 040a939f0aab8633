"""Named experiments over the simulator; each is rows of results that `report` writes and `cli` offers as a command.

    compare      one trace under several schemes
    survey       what a trace holds, without a simulation
    schemes      a system trace in all schemes
    migrate      live migration, by method of dirty logging
    overcommit   hosts short of memory
    curve, curve_kernel, stack_distance   misses of TLBs of every size, from one pass
    vpid         what VPID is worth
    consolidate  programs on the CPUs of one host
    tpr          ways of handling the TPR
    boot         a guest that changes its paging mode

Imports `machine`, `trace` and what is below them.

To add a study: a module here that yields its results one by one, a table in `report`, a command in `cli`.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.compare import SCHEMES, compare, configurations, each
    from fastmmu.study.consolidate import Consolidation, consolidate
    from fastmmu.study.curve import Curve, Curves, tlb_curve
    from fastmmu.study.survey import Survey, survey
    from fastmmu.study.tpr import WAYS, tpr_study
    from fastmmu.study.vpid import VpidPoint, vpid_experiment

__all__ = [
    "SCHEMES",
    "WAYS",
    "Consolidation",
    "Curve",
    "Curves",
    "Survey",
    "VpidPoint",
    "compare",
    "configurations",
    "consolidate",
    "each",
    "survey",
    "tlb_curve",
    "tpr_study",
    "vpid_experiment",
]

_HOMES = {
    "fastmmu.study.compare": ("SCHEMES", "compare", "configurations", "each"),
    "fastmmu.study.consolidate": ("Consolidation", "consolidate"),
    "fastmmu.study.curve": ("Curve", "Curves", "tlb_curve"),
    "fastmmu.study.survey": ("Survey", "survey"),
    "fastmmu.study.tpr": ("WAYS", "tpr_study"),
    "fastmmu.study.vpid": ("VpidPoint", "vpid_experiment"),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
