"""What a trace holds against counts in plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.trace import Trace
from fastmmu.trace.survey import survey

event = st.tuples(
    st.sampled_from([Op.READ, Op.WRITE, Op.FETCH, Op.SWITCH, Op.INVLPG]),
    st.one_of(st.integers(0, 3), st.integers(0, 1 << 24), st.integers(0, (1 << 64) - 1)),
)


@given(st.lists(event, min_size=1, max_size=60), st.integers(1, 20))
def test_it_counts(events: list[tuple[Op, int]], chunk: int) -> None:
    pages: dict[int, set[int]] = {}
    process = 0
    for op, addr in events:
        if op <= LAST_ACCESS:
            pages.setdefault(process, set()).add(addr >> 12)
        process = addr if op == Op.SWITCH else process
    trace = Trace.from_arrays(np.array([addr for _, addr in events], np.uint64), [int(op) for op, _ in events])
    whole = type(trace).batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trace), "batches", lambda self: whole(self, chunk))
        found = survey(trace)
    accesses = [addr for op, addr in events if op <= LAST_ACCESS]
    assert found.by_op == dict(Counter(op for op, _ in events))
    assert (found.events, found.accesses) == (len(events), len(accesses))
    assert found.pages_4k == sum(map(len, pages.values()))
    assert found.pages_2m == sum(len({page >> 9 for page in each}) for each in pages.values())
    assert (found.lowest, found.highest) == ((min(accesses), max(accesses)) if accesses else (None, None))
    assert found.processes == max(1, len(pages))


def test_a_switch_at_every_other_event_takes_no_longer() -> None:
    n = 1 << 18
    op = np.full(n, Op.SWITCH, np.uint8)
    op[1::2] = Op.READ
    found = survey(Trace.from_arrays(np.arange(n, dtype=np.uint64) << np.uint64(11), op))
    assert (found.pages_4k, found.processes) == (n // 2, n // 2)
