"""Named experiments over the simulator."""

from __future__ import annotations

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
