"""Two threads on one object, in a process of their own: a hang or a crash is a failure with a name."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

from fastmmu import FastmmuError

__all__ = ["Race", "forked", "race"]

LIMIT = 30.0
"""Seconds until a process hangs."""


class Race(NamedTuple):
    """What two threads came to: calls of each that were done, and that were refused; the longest wait of a call."""

    long: int
    short: int
    long_refused: int
    refused: int
    worst: float  # seconds of one call of the second thread
    said: str  # the first refusal


def forked(work: Callable[[], object], limit: float = LIMIT) -> object:
    """What `work` returns (as JSON has it), in a process of its own.

    :raises AssertionError: it hangs, dies of a signal, or raises.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            faulthandler.enable()
            out = json.dumps({"found": work()})
            code = 0
        except BaseException:
            out = json.dumps({"error": traceback.format_exc()})
        os.write(writer, out.encode())
        os._exit(code)
    os.close(writer)
    end = time.monotonic() + limit
    done, status = 0, 0
    while not done and time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            time.sleep(0.002)
    if not done:
        os.kill(pid, signal.SIGABRT)  # faulthandler shows where each thread stands
        os.waitpid(pid, 0)
        os.close(reader)
        raise AssertionError(f"it hangs: not done after {limit:g} s")
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    if os.WIFSIGNALED(status):
        raise AssertionError(f"it died of {signal.Signals(os.WTERMSIG(status)).name}")
    found = json.loads(text)
    assert "error" not in found, found["error"]
    return found["found"]


def race(make: Callable[[], tuple[Callable[[], object], Callable[[], object]]], calls: int = 30) -> Race:
    """Call the first function that `make` gives in one thread until the second was called so often in another.

    Both may be refused by an error of fastmmu; no other may come.
    """

    def work() -> object:
        long, short = make()
        stop, begun = threading.Event(), threading.Event()
        wrong: list[str] = []
        said: list[str] = []
        done = [0, 0, 0, 0]
        worst = 0.0

        def once(call: Callable[[], object], at: int) -> None:
            try:
                call()
                done[at] += 1
            except FastmmuError as error:
                said.append(f"{type(error).__name__}: {error}")
                done[at + 2] += 1
            except BaseException:
                wrong.append(traceback.format_exc())
                stop.set()

        def over_and_over() -> None:
            begun.set()
            while not stop.is_set():
                once(long, 0)

        thread = threading.Thread(target=over_and_over, daemon=True)
        thread.start()
        begun.wait()
        for _ in range(calls):
            if stop.is_set():
                break
            started = time.monotonic()
            once(short, 1)
            worst = max(worst, time.monotonic() - started)
            time.sleep(0.0005)
        stop.set()
        thread.join()
        assert not wrong, wrong[0]
        return [done[0], done[1], done[2], done[3], worst, said[0] if said else ""]

    found = forked(work)
    assert isinstance(found, list)
    return Race(*found)
