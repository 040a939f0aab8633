"""Named experiments over the simulator."""

from __future__ import annotations

from fastmmu.study.compare import SCHEMES, compare, configurations, each
from fastmmu.study.survey import Survey, survey

__all__ = ["SCHEMES", "Survey", "compare", "configurations", "each", "survey"]
