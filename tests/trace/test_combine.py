"""Combinators against the same written with lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.errors import TraceError
from fastmmu.ops import LAST_ACCESS, Op
from fastmmu.trace import Trace, exits_every, interleave
from fastmmu.trace.base import ArrayTrace

Event = tuple[int, int]

plain_event = st.tuples(
    st.sampled_from([Op.READ, Op.WRITE, Op.FETCH, Op.FETCH, Op.INVLPG, Op.UNMAP]).map(int), st.integers(0, 2**64 - 1)
)
traces = st.lists(plain_event, max_size=40)
accesses_only = st.lists(st.tuples(st.just(int(Op.READ)), st.integers(0, 99)), max_size=40)
chunks = st.integers(1, 12)


def trace_of(events: list[Event], name: str = "t") -> Trace:
    return Trace.from_arrays(np.array([e[1] for e in events], np.uint64), [e[0] for e in events], name=name)


def listed(trace: Trace, chunk: int) -> list[Event]:
    out: list[Event] = []
    for batch in trace.batches(chunk):
        assert 1 <= len(batch) <= chunk
        assert len(batch.op) == len(batch.size) == len(batch.addr)
        out += zip(batch.op.tolist(), batch.addr.tolist(), strict=True)
    return out


@given(traces, chunks)
def test_data_only(events: list[Event], chunk: int) -> None:
    assert listed(trace_of(events).data_only(), chunk) == [e for e in events if e[0] != Op.FETCH]


@given(traces, st.integers(0, 50), chunks)
def test_head(events: list[Event], n: int, chunk: int) -> None:
    head = trace_of(events).head(n)
    assert listed(head, chunk) == events[:n]
    assert head.total == min(n, len(events))


@settings(max_examples=200)
@given(st.one_of(traces, accesses_only), st.integers(1, 15), chunks)
def test_exits_every(events: list[Event], n: int, chunk: int) -> None:
    expected = []
    count = 0
    for event in events:
        expected.append(event)
        count += event[0] <= LAST_ACCESS
        if event[0] <= LAST_ACCESS and count % n == 0:
            expected.append((int(Op.EXIT), 12))
    assert listed(exits_every(trace_of(events), n, reason=12), chunk) == expected


def interleaved(traces: list[list[Event]], n: int) -> list[Event]:
    left = [list(trace) for trace in traces]
    out: list[Event] = []
    while any(left):
        for process, trace in enumerate(left):
            if not trace:
                continue
            out.append((int(Op.SWITCH), process))
            taken = 0
            while trace and taken < n:
                taken += trace[0][0] <= LAST_ACCESS
                out.append(trace.pop(0))
    return out


@settings(max_examples=300)
@given(st.lists(st.one_of(traces, accesses_only), min_size=1, max_size=4), st.integers(1, 15), chunks)
def test_interleave(all_events: list[list[Event]], n: int, chunk: int) -> None:
    mixed = interleave([trace_of(events) for events in all_events], switch_every=n)
    expected = interleaved(all_events, n)
    assert listed(mixed, chunk) == expected
    assert listed(mixed, chunk + 1) == expected


def test_one_trace_as_two_processes() -> None:
    trace = trace_of([(0, 1), (0, 2), (0, 3)], "a")
    mixed = interleave([trace, trace], 2)
    assert listed(mixed, 100) == [(16, 0), (0, 1), (0, 2), (16, 1), (0, 1), (0, 2), (16, 0), (0, 3), (16, 1), (0, 3)]
    assert mixed.name == "a+a"
    assert mixed.progress() == 1.0
    assert mixed.total is None


def test_combined_combinators() -> None:
    trace = trace_of([(3, 1), (0, 2), (3, 3), (1, 4), (0, 5)])
    mixed = exits_every(interleave([trace.data_only(), trace.head(1)], 2), 3, reason=10)
    assert listed(mixed, 2) == [(16, 0), (0, 2), (1, 4), (16, 1), (3, 1), (19, 10), (16, 0), (0, 5)]


def test_what_combinators_refuse() -> None:
    trace = trace_of([(0, 1), (16, 3)], "switching")
    with pytest.raises(TraceError, match="at least one trace"):
        interleave([], 3)
    with pytest.raises(TraceError, match="give 1 or more"):
        interleave([trace], 0)
    with pytest.raises(TraceError, match="switching holds CR3 switches itself"):
        listed(interleave([trace], 1), 10)
    with pytest.raises(TraceError, match="give 1 or more"):
        exits_every(trace, 0)
    with pytest.raises(TraceError, match="exit reason 80"):
        exits_every(trace, 1, reason=80)
    with pytest.raises(TraceError, match=r"head\(-1\)"):
        trace.head(-1)
    for made in (trace, trace.head(1), trace.data_only(), interleave([trace], 1), exits_every(trace, 1)):
        with pytest.raises(TraceError, match="chunk=0"):
            made.batches(0)


def test_from_arrays() -> None:
    addr = np.arange(5, dtype=np.uint64)
    trace = Trace.from_arrays(addr)
    assert isinstance(trace, ArrayTrace)
    (batch,) = trace.batches()
    assert np.shares_memory(batch.addr, addr)
    assert (list(batch.op), list(batch.size)) == ([0] * 5, [1] * 5)
    assert trace.total == 5
    (batch,) = Trace.from_arrays(np.arange(10)[::2], op=[3] * 5).batches()
    assert list(batch.addr) == [0, 2, 4, 6, 8]
    assert list(Trace.from_arrays([]).batches()) == []
    assert batch.accesses == 5


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (([1, -1],), "event 1: addr -1 is outside"),
        (([2**64],), "addr"),
        (([1.5],), "addr has dtype float64"),
        (([[1]],), "addr has 2 dimensions"),
        (([1, 2], [0]), "op has 1 elements where addr has 2"),
        (([1, 2], [0, 300]), "event 1: op 300 is outside 0 to 255"),
        (([1, 2], [0, 9]), "event 1: operation 9 does not exist"),
        (([1, 2], None, [1, 256]), "event 1: size 256 is outside 0 to 255"),
        (([80], [19]), "exit reason 80"),
        ((["a"],), "addr has dtype"),
    ],
)
def test_from_arrays_refuses(arrays: tuple[list[int], ...], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        Trace.from_arrays(*arrays)
