"""The bundled traces are what the capture script says they are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fastmmu.ops import Op
from fastmmu.trace import bundled, read_trace

SCRIPT = Path(__file__).parents[2] / "scripts" / "capture_traces.sh"


def test_there_are_two_and_they_are_small() -> None:
    assert list(bundled()) == ["sqlite", "zstd"]
    assert sum(path.stat().st_size for path in bundled().values()) < 3_000_000


@pytest.mark.parametrize("name", ["sqlite", "zstd"])
def test_a_bundled_trace(name: str) -> None:
    path = bundled()[name]
    trace = read_trace(path)
    assert (trace.name, trace.format) == (name, "lackey")
    kinds = np.zeros(256, np.int64)
    pages = np.zeros(0, np.uint64)
    for batch in trace.batches():
        kinds += np.bincount(batch.op, minlength=256)
        pages = np.union1d(pages, batch.addr >> np.uint64(12))
    wanted = re.search(rf"^window \d+ (\d+) \"\$out/{name}\.", SCRIPT.read_text(), re.MULTILINE)
    assert wanted is not None
    assert kinds.sum() == kinds[: Op.FETCH + 1].sum() == int(wanted[1])
    assert (kinds[: Op.FETCH + 1] > 1_000).all(), "some kind of access is missing"
    assert len(pages) > 1_000, "too few pages to say anything about a TLB"
