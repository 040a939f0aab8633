"""Curves of a trace in parts: those of one pass, bit for bit, wherever it is cut and whoever counts."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import ConfigError, Op, TraceError, read_trace
from fastmmu.cli import main
from fastmmu.reference.tlb.stack_distance import Event, Order, Part, distances, follow
from fastmmu.study import Curves, tlb_curve
from fastmmu.study.curve.curve_kernel_py import StackDistances
from fastmmu.study.curve.parts import Numbers, counted_part, filtered_part, piece
from fastmmu.trace import Batch, Trace, bundled, write_trace
from tests.support.curve_events import Events, events, stream, trace_of

SMALL = {"l1_sets": (2, 16, 64), "l2_sets": (4, 32), "ways": 8, "limit": 300}
DATA = (Op.READ, Op.WRITE, Op.MODIFY)


def same(one: Curves, other: Curves) -> None:
    assert (one.accesses, one.flushes, one.invalidations) == (other.accesses, other.flushes, other.invalidations)
    assert len(one.curves) == len(other.curves)
    for a, b in zip(one.curves, other.curves, strict=True):
        assert (a.unit, a.sets, a.lookups, a.pages) == (b.unit, b.sets, b.lookups, b.pages)
        for name in ("entries", "misses", "error"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), (a.unit, a.sets, name)


def cut(found: list[Event], at: list[int]) -> list[list[Event]]:
    bounds = [0, *sorted(min(each, len(found)) for each in at), len(found)]
    return [found[a:b] for a, b in itertools.pairwise(bounds)]


EVENT = st.one_of(
    st.tuples(st.just("access"), st.integers(0, 9)),
    st.tuples(st.just("access"), st.integers(0, 9)),
    st.tuples(st.just("invalidate"), st.integers(0, 9)),
    st.tuples(st.just("flush"), st.just(0)),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(EVENT, max_size=80), st.lists(st.integers(0, 80), max_size=4))
def test_the_specification_of_parts_is_that_of_one_piece(found: list[Event], at: list[int]) -> None:
    order, known = Order(), []
    for some in cut(found, at):
        part = Part(some)
        known += [*part.known, *follow(order, part)]
    key = [-1 if each is None else each for each in known]
    assert sorted(key) == sorted(-1 if each is None else each for each in distances(found))
    whole = Part(found)
    assert len(whole.order.order) == len(order.order)
    assert [each for each in order.order if isinstance(each, int)] == [
        each for each in whole.order.order if isinstance(each, int)
    ]


def columns(found: list[Event]) -> Batch:
    ops = {"access": Op.READ, "invalidate": Op.INVLPG, "flush": Op.SWITCH}
    op = np.array([ops[what] for what, _ in found], np.uint8)
    addr = np.array([key << 12 for _, key in found], np.uint64)
    return Batch(op, np.ones(len(op), np.uint8), addr)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENT, max_size=120), st.lists(st.integers(0, 120), max_size=5), st.sampled_from([1, 3, 200]))
def test_the_kernel_beside_the_specification(found: list[Event], at: list[int], limit: int) -> None:
    numbers = Numbers((((1, 2), 4),), ((0, 0, 4, None),) * 4, 12, False, limit, 1 << 32)
    whole: StackDistances | None = None
    for some in cut(found, at):
        part = counted_part(numbers, [columns(some)], None if whole is None else (0, {}))
        if whole is None:
            whole = part
        else:
            whole.follow(part.left())
    assert whole is not None
    counted = whole.of_tree(0).sum(axis=0)
    known = distances(found)
    repeats = whole.lookups(0) - counted.sum()
    for distance in range(1, limit + 1):
        n = sum(each == distance for each in known)
        assert counted[distance] + (repeats if distance == 1 else 0) == n
    assert counted[0] == sum(each is None or each > limit for each in known)
    for sets, number in ((1, 0), (2, 1)):
        per_set = [distances([e for e in found if e[0] == "flush" or e[1] % sets == s]) for s in range(sets)]
        listed = [each for one in per_set for each in one]
        of_list = whole.of_list(0, number)
        assert of_list.tolist() == [
            *(sum(each == d for each in listed) for d in range(1, 5)), sum(each is None or each > 4 for each in listed)
        ]  # fmt: skip


@pytest.mark.parametrize("pcid", [False, True])
@pytest.mark.parametrize("tlb", ["skylake", "core2", "zen2"])
@pytest.mark.parametrize(
    ("pages", "invalidations", "switches"), [(250, 0, 0), (250, 0.2, 0), (100, 0.02, 0.004), (300, 0.5, 0.0002)]
)
def test_wherever_it_is_cut(pages: int, invalidations: float, switches: float, pcid: bool, tlb: str) -> None:
    trace = trace_of(events(pages, 4000, pages, invalidations, switches))
    for sample in (1.0, 0.5):
        one = tlb_curve(trace, tlb, pcid=pcid, sample=sample, jobs=1, **SMALL)  # type: ignore[arg-type]
        for parts in (2, 3, 16):
            same(one, tlb_curve(trace, tlb, pcid=pcid, sample=sample, jobs=2, parts=parts, **SMALL))  # type: ignore[arg-type]


def test_parts_of_one_event_and_more_parts_than_events() -> None:
    found = events(3, 120, 40, 0.1, 0.05)
    one = tlb_curve(trace_of(found), jobs=1, **SMALL)  # type: ignore[arg-type]
    for parts in (len(found), 1000):
        same(one, tlb_curve(trace_of(found), parts=parts, jobs=2, **SMALL))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", bundled())
def test_a_bundled_trace_that_is_decoded_as_it_is_read(name: str) -> None:
    trace = read_trace(bundled()[name]).head(1_500_000)
    same(tlb_curve(trace, jobs=1), tlb_curve(trace, jobs=2, parts=5))


@pytest.mark.parametrize("executor", ["threads:2", "processes:2"])
@pytest.mark.parametrize("where", ["a file", "memory"])
def test_on_an_executor(executor: str, where: str, tmp_path: Path) -> None:
    found: Events = events(7, 6000, 200, 0.05, 0.002)
    trace = trace_of(found)
    if where == "a file":
        write_trace(trace, tmp_path / "t.npy")
        trace = read_trace(tmp_path / "t.npy")
    done: list[int] = []
    one = tlb_curve(trace, jobs=1, pcid=True, **SMALL)  # type: ignore[arg-type]
    same(one, tlb_curve(trace, pcid=True, executor=executor, parts=4, progress=done.append, **SMALL))  # type: ignore[arg-type]
    assert done == [1500, 3000, 4500, 6000]


def test_what_the_first_level_holds_at_a_cut() -> None:
    """By the last events of a part where these fill it; the same as by all."""
    random = Random(4)
    addresses = [random.randrange(400) << 12 for _ in range(300_000)]
    trace = Trace.from_arrays(addresses)
    numbers = Numbers((((16,), 4), ((32,), 8)), ((0, 0, 4, 1),) * 4, 12, False, 10, 0)
    (batch,) = trace.batches(1 << 20)
    left = filtered_part(numbers.filters(), [batch], 0)
    kernel = numbers.filters().distances()
    kernel.follow(left)
    whole = numbers.filters().distances()
    whole.feed(batch.op, batch.size, batch.addr)
    for a, b in zip(kernel.order_of_list(0, 0), whole.order_of_list(0, 0), strict=True):
        assert np.array_equal(a, b)
    assert left["levels"][0]["keys"].size < 1000


@pytest.mark.parametrize("name", ["", "t.npy", "t.npy.xz", "t.arrow", "t.lackey"])
def test_a_piece_of_a_trace(name: str, tmp_path: Path) -> None:
    trace = trace_of(events(1, 1000, 50, 0, 0))
    if name:
        write_trace(trace, tmp_path / name)
        trace = read_trace(tmp_path / name)
    whole = np.concatenate([batch.addr for batch in trace.batches()])
    for first, stop in ((0, 1000), (0, 1), (999, 1000), (300, 700), (5, 5)):
        found = [int(a) for batch in piece(trace, first, stop) for a in batch.addr]
        assert found == whole[first:stop].tolist()
    for first in (0, 1, 999, 1000, 5000):
        found = [int(a) for batch in trace.events_from(first, 77) for a in batch.addr]
        assert found == whole[first:].tolist()
    with pytest.raises(TraceError, match="counted from 0"):
        trace.events_from(-1)


def test_errors_name_the_event_of_the_whole_trace() -> None:
    trace = Trace.from_arrays([0x1000] * 500 + [1 << 60])
    for how in ({"jobs": 1}, {"parts": 3, "jobs": 2}, {"parts": 3, "executor": "threads:2"}):
        with pytest.raises(TraceError, match="event 500: "):
            tlb_curve(trace, **how)  # type: ignore[arg-type]


def test_what_is_refused() -> None:
    trace = Trace.from_arrays([0x1000] * 10)
    with pytest.raises(ConfigError, match="there is none"):
        tlb_curve(trace, executor="nowhere")
    with pytest.raises(ConfigError, match="1 part or more"):
        tlb_curve(trace, parts=0)
    numbers = Numbers((((16,), 4),), ((0, 0, 4, None),) * 4, 12, False, 10, 1 << 32)
    kernel = numbers.distances()
    for bad in ({}, {"levels": []}, {**kernel.left(), "levels": [{}]}):
        with pytest.raises(ConfigError, match="what a part left"):
            kernel.follow(bad)
    other = Numbers((((32,), 4),), ((0, 0, 4, None),) * 4, 12, False, 10, 1 << 32).distances((0, {})).left()
    with pytest.raises(ConfigError, match="what a part left"):
        kernel.follow(other)
    assert list(stream([], DATA, False)) == []


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(trace_of(events(9, 3000, 120, 0.02, 0)), "t.npy")
    found = []
    for more in ("--jobs 1", "--jobs 2 --parts 3", "--executor threads:2 --parts 4"):
        assert main([*["tlb-curve", "t.npy", "--quiet", "--most", "500", "--json", "c.json"], *more.split()]) == 0
        found.append([{**row} for row in json.loads(Path("c.json").read_text())["curves"]])
    assert found[0] == found[1]
    without = [[{k: v for k, v in row.items() if k != "content"} for row in rows] for rows in found]
    assert without[0] == without[2]
    capsys.readouterr()
    for more in ("--executor nowhere", "--executor threads:x", "--parts 0"):
        with contextlib.suppress(SystemExit):
            assert main(["tlb-curve", "t.npy", "--quiet", *more.split()]) == 2
        assert capsys.readouterr().err.count("\n") == 1
