"""Named experiments over the simulator."""

from __future__ import annotations

from fastmmu.study.compare import SCHEMES, compare, configurations, each
from fastmmu.study.curve import Curve, Curves, tlb_curve
from fastmmu.study.survey import Survey, survey

__all__ = ["SCHEMES", "Curve", "Curves", "Survey", "compare", "configurations", "each", "survey", "tlb_curve"]
