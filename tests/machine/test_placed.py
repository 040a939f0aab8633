"""Pages that a trace places: physical addresses are those that it says, in every scheme, whatever comes between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Config, ConfigError, Machine, Op, TraceError, simulate
from fastmmu.machine.simulation import Simulation
from fastmmu.trace import Trace, interleave

SCHEMES = [
    {},
    {"mmu": "ept", "vpid": True},
    {"mmu": "shadow", "kvm": "6.1"},
    {"pages": "2m", "mmu": "ept"},
    {"pages": "thp", "thp_threshold": 2, "mmu": "shadow"},
    {"pcid": True, "mmu": "ept", "premapped": True},
]
MEMORY = 1 << 30
NOWHERE = (1 << 64) - 1

page = st.integers(0, 40).map(lambda n: 0x40_0000 + 4096 * n * 37)
frame = st.integers(1, 40).map(lambda n: 4096 * n * 13)
events = st.one_of(
    st.tuples(st.sampled_from([Op.READ, Op.WRITE, Op.FETCH]), page, st.integers(0, 4000)),
    st.tuples(st.just(Op.PLACE), page, frame),
    st.tuples(st.just("large"), page.map(lambda va: va & -0x20_0000), st.integers(1, 9).map(lambda n: n << 21)),
    st.tuples(st.sampled_from([Op.UNMAP, Op.SWITCH]), page, st.integers(0, 2)),
)


def columns(found: list[tuple]) -> tuple[np.ndarray, ...]:
    rows: list[tuple[int, int, int]] = [(Op.PLACE, 0, 0x1000), (Op.PLACE, 12, 0x1000)]
    for op, first, second in found:
        if op in (Op.PLACE, "large"):
            rows += [(Op.PLACE, 0, first), (Op.PLACE, 12 if op == Op.PLACE else 21, second)]
        elif op == Op.SWITCH:
            rows.append((op, 0, second))
        elif op == Op.UNMAP:
            rows.append((op, 0, first))
        else:
            rows.append((op, 1, first + second))
    op, size, addr = zip(*rows, strict=True)
    return np.array(op, np.uint8), np.array(size, np.uint8), np.array(addr, np.uint64)


@settings(max_examples=60, deadline=None)
@given(st.lists(events, max_size=60), st.sampled_from(SCHEMES))
def test_each_access_goes_where_the_trace_says(found: list[tuple], scheme: dict) -> None:
    op, size, addr = columns(found)
    simulation = Simulation(Config(memory=MEMORY, **scheme))
    out = np.zeros(len(op), np.uint64)
    batch = next(iter(Trace.from_arrays(addr, op, size).batches()))
    simulation.feed(batch, out)
    assert simulation.config.kernel_memory == "high"
    places: dict[tuple[int, int, int], int] = {}
    seen: dict[int, tuple[int, int]] = {}  # frames of the kernel's own, and whose they are now
    process = pending = 0
    for kind, bits, at, pa in zip(op.tolist(), size.tolist(), addr.tolist(), out.tolist(), strict=True):
        if kind == Op.SWITCH:
            process = at
        elif kind == Op.PLACE and bits:
            places[process, pending >> bits, bits] = at
        elif kind == Op.PLACE:
            pending = at
        elif kind <= Op.FETCH:
            small, large = places.get((process, at >> 12, 12)), places.get((process, at >> 21, 21))
            if small is not None:
                assert pa == small + at % 4096
            elif large is not None:
                assert pa == large + at % (1 << 21)
            else:
                assert pa > max(1 << 25, MEMORY // 2), "a page of the kernel's own"
                assert pa % 4096 == at % 4096
                seen[pa >> 12] = process, at >> 12
            continue
        assert pa == NOWHERE


def test_two_processes_share_a_page() -> None:
    op = np.array([31, 31, 0, 16, 31, 31, 0], np.uint8)
    size = np.array([0, 12, 8, 0, 0, 12, 8], np.uint8)
    addr = np.array([0x7000, 0x5000, 0x7010, 1, 0x9000, 0x5000, 0x9018], np.uint64)
    out = np.zeros(7, np.uint64)
    Machine(Config(kernel_memory="high", memory="1G")).run(op, size, addr, out)
    assert out[2] == 0x5010
    assert out[6] == 0x5018


def test_a_trace_that_places_nothing_is_as_before() -> None:
    addr = np.arange(0x1000, 0x100_0000, 4096, dtype=np.uint64)
    low, high = (simulate(addr, Config(mmu="ept", kernel_memory=where)) for where in ("low", "high"))
    assert low.config.kernel_memory == "low"
    for name in ("tlb_misses", "pages_touched", "kernel_accesses"):
        assert low.counters[name] == high.counters[name]


@pytest.mark.parametrize(
    ("rows", "error", "said"),
    [
        ([(12, 0x5000)], TraceError, "event 0: no page is placed at 0x5000 so"),
        ([(0, 0x7000), (13, 0x5000)], TraceError, "event 1: no page is placed at 0x5000 so"),
        ([(0, 0x7000), (12, 0x5008)], TraceError, "multiples of the page's bytes"),
        ([(0, 0x7000), (21, 0x200000)], TraceError, "multiples of the page's bytes"),
        ([(0, 1 << 47)], TraceError, "0x800000000000 is not an address of a user program"),
        ([(0, 0x7000), (12, 1 << 40)], TraceError, r"0x10000000000 is not in guest memory, .* raise Config\(m"),
        ([(0, 0x7000), (12, MEMORY - 4096)], TraceError, "where the guest kernel has its own pages"),
        ([(0, 0x7000), (12, 0x5000), (12, 0x6000)], TraceError, "event 2: no page is placed at 0x6000 so"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(rows: list[tuple[int, int]], error: type[Exception], said: str) -> None:
    op = np.full(len(rows), Op.PLACE, np.uint8)
    size, addr = np.array([n for n, _ in rows], np.uint8), np.array([at for _, at in rows], np.uint64)
    with pytest.raises(error, match=said):
        Simulation(Config(memory=MEMORY)).feed(next(iter(Trace.from_arrays(addr, op, size).batches())))


def test_a_kernel_in_the_way_says_so() -> None:
    op, size, addr = np.array([Op.PLACE], np.uint8), np.zeros(1, np.uint8), np.array([0x7000], np.uint64)
    with pytest.raises(ConfigError, match=r'Config\(kernel_memory="high"\)'):
        Machine(Config(memory=MEMORY)).run(op, size, addr)


def test_memory_that_the_pages_fill() -> None:
    """The kernel's own pages end where those of the trace do."""
    top = (1 << 26) - (1 << 22)
    op = np.array([31, 31, *[0] * 2000], np.uint8)
    addr = np.array([0x7000, top, *range(1 << 30, (1 << 30) + 2000 * 4096, 4096)], np.uint64)
    with pytest.raises(Exception, match=r"guest memory of 0x4000000 bytes is used up|has its own pages"):
        Simulation(Config(memory=1 << 26)).feed(
            next(iter(Trace.from_arrays(addr, op, np.array([0, 12, *[1] * 2000], np.uint8)).batches()))
        )


def test_processes_of_traces_put_together() -> None:
    traces = [
        Trace.from_arrays([0x7000, where, 0x7008], [31, 31, 0], [0, 12, 8], name=f"t{where}")
        for where in (0x5000, 0x6000)
    ]
    simulation = Simulation(Config(memory="1G"))
    for batch in interleave(traces, switch_every=1).batches():
        out = np.zeros(len(batch), np.uint64)
        simulation.feed(batch, out)
        assert set(out[batch.op == Op.READ].tolist()) <= {0x5008, 0x6008}
