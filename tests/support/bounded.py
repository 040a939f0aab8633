"""What may happen while a file that nobody checked is read: our errors, in little time and memory."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from fastmmu.errors import FastmmuError

__all__ = ["MEGABYTES", "SECONDS", "bounded"]

SECONDS = 20  # of one file, on a busy machine
MEGABYTES = 400


@contextmanager
def bounded() -> Iterator[None]:
    """Our errors only; no more than so many seconds and bytes."""

    def late(*_: object) -> None:
        raise AssertionError(f"more than {SECONDS} seconds")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except FastmmuError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert grown < MEGABYTES, f"{grown} MB"
