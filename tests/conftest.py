"""What holds for all tests."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings

# A time limit per example would fail on a busy machine, and prove nothing.
settings.register_profile("fastmmu", deadline=None)
settings.load_profile("fastmmu")

# Tables are as wide as the terminal, whoever has one.
os.environ["COLUMNS"] = "120"

GROUPED = ("project/test_wheel.py", "project/test_annotate.py")
"""Modules whose set-up compiles all kernels: each on one worker, and first, so that no worker waits for them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As `--dist load`, but for these modules. (The marks of `--dist loadgroup` do nothing under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # begins with the scopes that hold most tests
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.split("::")[0]
            return module if module.endswith(GROUPED) else nodeid

    return Scheduling(config, log)
