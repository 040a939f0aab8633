"""Blocks that wait for lanes: the same events, in memory whose peak does not depend on how many there are."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fastmmu.threads.blocks import apart
from fastmmu.trace.events import Batch
from fastmmu.trace.system import RECORD_DTYPE, Records


def test_a_copy_is_the_same_block() -> None:
    rng = np.random.default_rng(1)
    for n in (0, 1, 1000):
        op, addr = rng.integers(0, 4, n).astype(np.uint8), rng.integers(0, 1 << 47, n).astype(np.uint64)
        block = Batch(op, op + 1, addr, None if n else addr.astype(np.uint32))
        copy = apart(block)
        for name in ("op", "size", "addr", "instructions"):
            mine, theirs = getattr(copy, name), getattr(block, name)
            assert mine is theirs is None or (np.array_equal(mine, theirs) and mine.dtype == theirs.dtype)
            assert mine is None or not (mine.flags.writeable or np.shares_memory(mine, theirs))
    records = Records(7, np.zeros(3, RECORD_DTYPE), np.arange(2, dtype=np.uint64), np.ones((2, 4096), np.uint8))
    copied = apart(records)
    assert (copied.first, copied.pages.shape, copied.rows.dtype) == (7, (2, 4096), RECORD_DTYPE)
    assert np.array_equal(copied.data, records.data)
    assert apart([1, 2]) == [1, 2]


PASS = """
import sys, time, numpy as np
from fastmmu.threads.lanes import in_lanes
from fastmmu.trace.events import Batch
def blocks(n):
    for _ in range(n):
        k = 1 << 17
        yield Batch(np.zeros(k, np.uint8), np.ones(k, np.uint8), np.arange(k, dtype=np.uint64))
def lane():
    n = 0
    while (block := (yield False)) is not None:
        time.sleep(0.002)  # so that the reader is as far ahead as it may be
        n += int(block.addr[-1]) + 1
    return n
n = int(sys.argv[1])
assert list(in_lanes([lane] * 5, blocks(n), jobs=2, size=lambda block: 10 * len(block))) == [n << 17] * 5
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc says how much memory there was")
def test_the_peak_does_not_depend_on_the_length() -> None:
    def peak(n: int) -> int:
        run = subprocess.run([sys.executable, "-c", PASS, str(n)], check=True, capture_output=True, text=True)
        return int(run.stdout)

    assert peak(500) < 1.08 * peak(100)
