"""Between two marks of a system trace: exact differences of what the run has counted at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, ConfigError, read_trace, simulate
from fastmmu.dtypes import EXIT_DTYPE
from fastmmu.machine.roi import Marks, marks_of
from fastmmu.machine.series import AT_END
from fastmmu.machine.side_by_side import each
from fastmmu.ops import LAST_ACCESS, RecordOp
from fastmmu.trace.base import Trace

MM = Path(__file__).parents[1] / "data/systems/mm.rec.xz"
CONFIG = Config(mmu="ept", vpid=True, memory="2G", exit_log=50)


def marks() -> dict[int, int]:
    """Accesses before each mark."""
    found, accesses = {}, 0
    for chunk in read_trace(MM).records():  # type: ignore[attr-defined]
        rows = chunk.rows
        before = np.concatenate([[0], np.cumsum(rows["op"] <= LAST_ACCESS)])
        for at in np.flatnonzero(rows["op"] == RecordOp.MARK):
            found[int(rows["aux"][at])] = accesses + int(before[at])
        accesses += int(before[-1])
    return found


class Chunked:
    """The same records in chunks of another length."""

    kind = "system"

    def __init__(self, inner: Any, chunk: int) -> None:
        self.inner, self.chunk, self.name, self.path = inner, chunk, inner.name, inner.path

    def cpus(self) -> Any:
        return self.inner.cpus()

    def final_pages(self, n: int) -> Any:
        return self.inner.final_pages(n)

    def records(self) -> Iterator[Any]:
        return iter(self.inner.records(self.chunk))


@pytest.mark.parametrize(
    ("text", "begin", "end"), [("3", 3, 4), ("3:5", 3, 5), ("6:", 6, None), (":3", None, 3), ("7", 7, None)]
)
def test_what_is_counted(text: str, begin: int | None, end: int | None) -> None:
    at = marks()
    trace = read_trace(MM)
    exits: list[Any] = []
    found = simulate(trace, CONFIG, roi=text, exits=exits.append)
    first = 0 if begin is None else at[begin]
    whole = simulate(trace, CONFIG)
    last = whole.counters["accesses"] if end is None else at[end]
    assert found.first == first
    assert found.counters["accesses"] == last - first
    upto = whole.counters if end is None else simulate(trace, CONFIG, roi=f":{end}").counters
    before = {} if begin is None else simulate(trace, CONFIG, roi=f":{begin}").counters
    for name, n in upto.items():
        if name not in AT_END and not isinstance(n, dict):
            assert found.counters[name] == n - before.get(name, 0), name
    assert found.notes == whole.notes
    records = np.concatenate([np.empty(0, EXIT_DTYPE), *exits])
    assert len(records) == found.counters["vm_exits"]
    assert found.exit_log is not None
    log = found.exit_log.records  # those of the last of the run that are of this part
    assert (log == records[len(records) - len(log) :]).all()
    assert end is not None or len(log) == min(50, len(records))
    assert len(found.exit_log) + found.exit_log.lost == len(records)


@pytest.mark.parametrize("chunk", [1000, 77_777])
def test_neither_chunks_nor_threads_change_it(chunk: int) -> None:
    trace = read_trace(MM)
    configs = [CONFIG, Config(memory="2G")]
    expected = list(each(trace, configs, roi="4"))
    for one, other in zip(each(Chunked(trace, chunk), configs, roi="4", jobs=2), expected, strict=True):  # type: ignore[arg-type]
        assert one.counters == other.counters
        assert one.tlb == other.tlb


def test_numbers_of_marks() -> None:
    assert marks_of("3") == Marks(3, "next")
    assert marks_of(" 3 : 5 ") == Marks(3, 5)
    assert marks_of(":5") == Marks(None, 5)
    for bad in ("", ":", "a", "1:2:3", "-1", "1 2", "\u0661", "9" * 30):
        with pytest.raises(ConfigError, match="number of a mark"):
            marks_of(bad)


def test_what_is_refused() -> None:
    trace = read_trace(MM)
    for text, said in (("9", "no mark 9 .* marks are 2, 3, 4, 5, 6, 7"), ("3:2", "no mark 2")):
        with pytest.raises(ConfigError, match=said):
            simulate(trace, CONFIG, roi=text)
    for more in ({"warm_up": 5}, {"interval": 5}):
        with pytest.raises(ConfigError, match="leave out warm_up= and interval="):
            simulate(trace, CONFIG, roi="3", **more)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--warm-up N"):
        simulate(Trace.from_arrays([1, 2, 3]), CONFIG, roi="3")
