"""Traces can be pickled and copied at any time: before a pass, in it, after it."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fastmmu
from fastmmu.trace import exits_every, interleave, with_tpr
from fastmmu.trace.identity import identified
from tests.support.event_lists import program

DATA = Path(__file__).parents[1] / "data"
FORMATS = ("lackey", "lackey.xz", "npy", "npy.gz", "arrow", "champsim", "system")


@pytest.fixture(params=FORMATS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], fastmmu.Trace]:
    """A trace of each format."""
    if request.param == "system":
        return lambda: fastmmu.read_trace(DATA / "systems" / "mm.rec.xz").head(3000)
    path = tmp_path / f"t.{request.param}"
    if request.param == "champsim":
        records = np.zeros((700, 8), np.uint64)
        records[:, 0] = 0x40_0000 + np.arange(700)
        records[:, 1] = 5 << 16  # a register
        records[:, 4] = 0x10_0000 + 64 * np.arange(700)
        path.write_bytes(records.tobytes())
    else:
        if request.param == "arrow":
            pytest.importorskip("pyarrow")
        fastmmu.write_trace(program(2000), path)
    return lambda: fastmmu.read_trace(path)


def read(trace: fastmmu.Trace) -> list[tuple[list[int], list[int], list[int]]]:
    return [(batch.op.tolist(), batch.size.tolist(), batch.addr.tolist()) for batch in trace.batches(400)]


COPIES = (lambda trace: pickle.loads(pickle.dumps(trace)), copy.copy, copy.deepcopy)


def test_at_any_time(make: Callable[[], fastmmu.Trace]) -> None:
    def of_it() -> list[fastmmu.Trace]:
        made = [make(), make().head(1500), identified(make())]
        if made[0].kind == "program":
            made += [
                make().data_only(),
                exits_every(make(), 7),
                with_tpr(make(), "winxp"),
                interleave([make(), make()], 50),
            ]
        return made

    for number, trace in enumerate(of_it()):
        wanted = read(of_it()[number])
        for another in COPIES:
            fresh = another(trace)
            assert read(fresh) == wanted
            iterator = trace.batches(400)
            first = [next(iterator)]
            middle = another(trace)
            assert read(middle) == wanted
            rest = [*first, *iterator]  # the pass goes on where it was
            assert [batch.addr.tolist() for batch in rest] == [addr for _, _, addr in wanted]
            assert read(another(trace)) == wanted
            assert repr(fresh) == repr(middle) == repr(another(trace)) == repr(trace)


def test_a_copy_of_a_known_trace_knows_it(tmp_path: Path) -> None:
    fastmmu.write_trace(program(2000), tmp_path / "t.npy")
    trace = identified(fastmmu.read_trace(tmp_path / "t.npy"))
    result = fastmmu.simulate(trace)
    assert pickle.loads(pickle.dumps(trace)).content == trace.content == result.content != ""


def test_batches_and_half_read_copies(tmp_path: Path) -> None:
    fastmmu.write_trace(program(2000), tmp_path / "t.npy.gz")
    trace = fastmmu.read_trace(tmp_path / "t.npy.gz")
    for batch in itertools.islice(trace.batches(100), 3):
        other = pickle.loads(pickle.dumps(batch))
        assert (other.addr == batch.addr).all()
        assert other.addr.dtype == batch.addr.dtype
    assert copy.deepcopy(trace).progress() is None  # no pass of its own yet
