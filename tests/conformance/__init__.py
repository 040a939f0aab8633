"""Conformance with data that others made: the same vectors through any implementation, by way of a small adapter.

`vectors` reads and compares, `spec` adapts the executable specification, `python -m tests.conformance` runs it all.
"""

from __future__ import annotations
