"""The implementations that are put to the same tests."""

from __future__ import annotations

import pytest

from .cases import Adapter, Case, Observed
from .kernel import BatchAdapter, KernelAdapter
from .spec import SpecAdapter

__all__ = ["adapters", "ask"]


def adapters(*, batch: bool = False) -> list[Adapter]:
    """Those that tell everything, the specification first; with `batch`, also the one that tells where and whether."""
    return [SpecAdapter(), KernelAdapter(), *([BatchAdapter()] if batch else [])]


def ask(adapter: Adapter, case: Case, *fields: str) -> Observed:
    """The answer; the test is skipped where the implementation cannot take the case or never reports the fields."""
    if missing := sorted(adapter.unreported & set(fields)):
        pytest.skip(f"skipped: the {adapter.name} does not report {', '.join(missing)}")
    answer = adapter.run(case)
    if isinstance(answer, str):
        pytest.skip(f"skipped: {adapter.name}: {answer}")
    return answer
