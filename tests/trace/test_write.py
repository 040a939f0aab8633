"""Writing is all or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmmu.errors import TraceError
from fastmmu.trace import Batch, Trace, read_trace, write_trace
from tests.support.trace_files import assert_same, events, sample

pyarrow = pytest.importorskip("pyarrow", reason="skipped: the extra arrow is not installed")


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    bad = tmp_path / "bad.lackey"
    bad.write_text(" L 1000,4\n" * 1000 + "oops\n")
    old = tmp_path / "old.arrow"
    write_trace(sample(5, True), old)
    before = old.read_bytes()
    for name in ("old.arrow", "n.npy", "n.lackey.xz", "n.arrow.zst", "bad.lackey"):
        with pytest.raises(TraceError, match="line 1001"):
            write_trace(read_trace(bad), tmp_path / name)
    with pytest.raises(TraceError, match="event 1: lackey text cannot hold operation 16"):
        write_trace(Trace.from_arrays([1, 2], [0, 16]), tmp_path / "n.lackey")
    with pytest.raises(TraceError, match="cannot write this as a trace"):
        write_trace(sample(5, False), tmp_path / "n.gem5")
    with pytest.raises(TraceError, match="compression 'gz' of Arrow buffers"):
        write_trace(sample(5, False), tmp_path / "n.arrow", compression="gz")
    with pytest.raises(TraceError, match="cannot be written: No such file or directory"):
        write_trace(sample(5, False), tmp_path / "none" / "n.arrow")
    with pytest.raises(TraceError, match="no regular file"):
        write_trace(sample(5, False), tmp_path, format="npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.lackey", "old.arrow"]
    assert old.read_bytes() == before


def test_nothing_is_left_of_an_interrupted_write(tmp_path: Path) -> None:
    class Interrupted(Trace):
        def batches(self, chunk: int = 0) -> Iterator[Batch]:
            yield from sample(50, False).batches()
            raise KeyboardInterrupt

    for name in ("t.arrow", "t.npy", "t.lackey", "t.lackey.zst", "t.arrow.xz"):
        with pytest.raises(KeyboardInterrupt):
            write_trace(Interrupted(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_trace_can_replace_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    write_trace(sample(100, True), path)
    expected = events(read_trace(path).head(40))
    write_trace(read_trace(path).head(40), path)
    assert_same(events(read_trace(path)), expected)
