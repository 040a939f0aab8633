"""What is given up while the workers go: nobody's thread dies of it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from fastmmu.study.sweep.executors import Pool, opened


def test_workers_that_die_as_all_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at Ctrl-C, which reaches all processes of a terminal, also workers that do not ignore it yet."""
    seen: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda ended: seen.append(repr(ended.exc_value)))
    with opened("processes:2") as pool:
        futures = [pool.submit(time.sleep, 30) for _ in range(12)]
        attends = pool.executor._executor_manager_thread
        while sum(future.running() for future in futures) < 3:  # its queue is full, the others wait
            time.sleep(0.01)
        pool.give_up(futures)
        for process in list(pool.executor._processes.values()):
            process.kill()
        attends.join(60)  # it ends when it has seen them die
        assert not attends.is_alive()
    assert seen == []


def test_what_has_not_begun_is_cancelled_elsewhere() -> None:
    with ThreadPoolExecutor(1) as executor:
        begun, end = threading.Event(), threading.Event()

        def first() -> None:
            begun.set()
            end.wait(60)

        pool = Pool(lambda: executor, 1, ours=False)
        running, waiting = pool.submit(first), pool.submit(time.sleep, 0)
        begun.wait(60)
        given: list[Future[Any]] = [running, waiting]
        pool.give_up(given)
        assert waiting.cancelled()
        end.set()
        assert running.result(60) is None
