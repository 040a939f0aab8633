"""Pieces made ahead in a thread: the same pieces and errors in their order, and nobody is left behind."""

from __future__ import annotations

import gzip
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastmmu import Trace, read_trace, write_trace
from fastmmu.errors import TraceError
from fastmmu.trace.ahead import Ahead

PIECE = 1 << 19


def numbered(n: int, error: Exception | None = None) -> Iterator[bytes]:
    for i in range(n):
        yield i.to_bytes(4, "little") * (PIECE // 4)
    if error is not None:
        raise error


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "fastmmu-unpack"]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 9])
def test_all_pieces_in_their_order(n: int) -> None:
    assert [piece[:4] for piece in Ahead(numbered(n))] == [i.to_bytes(4, "little") for i in range(n)]
    assert threads() == []


@pytest.mark.parametrize("n", [0, 2, 5])
def test_an_error_comes_after_what_was_made(n: int) -> None:
    ahead = Ahead(numbered(n, ValueError("damaged")))
    for _ in range(n):
        next(ahead)
    with pytest.raises(ValueError, match="damaged"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)
    assert threads() == []


def test_little_is_had_without_a_thread_and_not_much_is_made_ahead() -> None:
    made: list[int] = []

    def counted() -> Iterator[bytes]:
        for piece in numbered(50):
            made.append(1)
            yield piece

    ahead = Ahead(counted())
    next(ahead)
    next(ahead)
    assert threads() == []
    next(ahead)
    assert threads() == ["fastmmu-unpack"]
    time.sleep(0.3)
    assert 3 <= len(made) <= 6
    ahead.close()
    ahead.close()
    assert threads() == []


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    plain = tmp_path / "t.din"
    at = np.arange(600_000, dtype=np.uint64)
    write_trace(Trace.from_arrays(0x7F00_0000_0000 + at * 4104), plain)
    with gzip.open(tmp_path / "t.din.gz", "wb", 1) as out:
        out.write(plain.read_bytes())
    return tmp_path / "t.din.gz"


def test_a_pass_that_is_left_ends_its_thread(packed: Path) -> None:
    batches = read_trace(packed).batches(100_000)
    for _ in range(3):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threads() == []


def test_damage_behind_the_first_megabyte(packed: Path) -> None:
    data = packed.read_bytes()
    packed.write_bytes(data[:-5])
    for _ in range(2):
        with pytest.raises(TraceError, match=r"the \.gz data ends early, after [0-9]+ decompressed bytes"):
            for _ in read_trace(packed).batches():
                pass
        assert threads() == []


def test_a_pass_goes_on_in_no_forked_process(packed: Path) -> None:
    batches = read_trace(packed).batches(100_000)
    for _ in range(3):
        next(batches)
    child = os.fork()
    if not child:
        try:
            for _ in batches:
                pass
        except TraceError:
            os._exit(7)
        os._exit(8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert sum(len(batch) for batch in batches) == 300_000
