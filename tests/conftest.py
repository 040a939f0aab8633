"""What holds for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# A time limit per example would fail on a busy machine, and prove nothing.
settings.register_profile("fastmmu", deadline=None)
settings.load_profile("fastmmu")

# Tables are as wide as the terminal, whoever has one.
os.environ["COLUMNS"] = "120"

GROUPED = ("test_project_wheel", "test_project_annotate")
"""Modules whose set-up compiles all kernels: each on one worker, and first, so that no worker waits for them."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in GROUPED:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.path.stem not in GROUPED)
