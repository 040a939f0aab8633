"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# A time limit per example would fail on a busy machine, and prove nothing.
settings.register_profile("fastmmu", deadline=None)
settings.load_profile("fastmmu")
