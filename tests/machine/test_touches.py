"""What of a trace touches a page in a new way: the kernel beside its specification."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Op, TraceError
from fastmmu.machine.touches import Touches
from fastmmu.reference.trace.touches import first_touches

OPS = (*[Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH] * 6, *(op for op in Op if op > Op.FETCH))
ADDRESS = st.one_of(
    st.integers(0, 40).map(lambda page: page << 12),
    st.integers(0, 40 << 12),
    st.integers(0, (1 << 64) - 1),
    st.integers((1 << 57) - 5000, 1 << 57),
)
EVENT = st.tuples(st.sampled_from(OPS), st.integers(0, 255), ADDRESS)


def columns(events: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    op, size, addr = zip(*events, strict=True) if events else ((), (), ())
    return np.array(op, np.uint8), np.array(size, np.uint8), np.array(addr, np.uint64)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(EVENT, max_size=60), max_size=4), st.integers(1, 60))
def test_first_touches(stretches: list[list[tuple[int, int, int]]], chunk: int) -> None:
    touches = Touches()
    for events in stretches:
        touches.forget()
        op, size, addr = columns(events)
        found = [
            at + int(place)
            for at in range(0, len(op), chunk)
            for place in touches.first(op[at : at + chunk], size[at : at + chunk], addr[at : at + chunk])
        ]
        assert found == first_touches(events)


def test_many_pages_and_many_stretches() -> None:
    pages = np.arange(100_000, dtype=np.uint64) << np.uint64(12)
    op, size = np.zeros(len(pages), np.uint8), np.ones(len(pages), np.uint8)
    touches = Touches()
    assert len(touches.first(op, size, pages)) == len(pages)
    assert len(touches.first(op, size, pages)) == 0
    for _ in range(70_000):  # more than an entry tells apart
        touches.forget()
    assert len(touches.first(op[:10], size[:10], pages[:10])) == 10
    assert len(touches.first(op + np.uint8(Op.FETCH), size, pages)) == len(pages)


def test_columns_of_one_length() -> None:
    with pytest.raises(TraceError, match="different lengths"):
        Touches().first(np.zeros(2, np.uint8), np.zeros(1, np.uint8), np.zeros(2, np.uint64))
