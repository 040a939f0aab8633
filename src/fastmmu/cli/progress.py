"""Progress on standard error, a bar on a terminal and nothing in a pipe; and Ctrl-C meanwhile."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["INTERRUPTED", "Interruption", "Report", "progress", "until_interrupted"]

Report = Callable[[str, float | None, int], None]
"""Called with what runs, the fraction done (None: unknown) and the events done."""

INTERRUPTED = 130  # exit code: 128 + SIGINT, as shells have it

_EVERY = 0.1  # seconds between two updates of the plain line


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Report]:
    """A display for as long as the block runs; it leaves nothing behind."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, fraction, events: None
        return
    try:
        import rich.progress
    except ImportError:
        with _plain() as report:
            yield report
        return
    from fastmmu.report.table import number

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.fields[events]} events"),
        rich.progress.TimeElapsedColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None, visible=False, events="")

        def report(what: str, fraction: float | None, events: int) -> None:
            total = None if fraction is None else 1.0
            done = fraction or 0.0
            bars.update(task, description=what, visible=True, total=total, completed=done, events=number(events))

        yield report


@contextmanager
def _plain() -> Iterator[Report]:
    from fastmmu.report.table import number

    last = 0.0
    long = 0

    def report(what: str, fraction: float | None, events: int) -> None:
        nonlocal last, long
        if time.monotonic() - last < _EVERY:
            return
        last = time.monotonic()
        part = "" if fraction is None else f"{fraction:4.0%}  "
        line = f"{what}  {part}{number(events)} events"
        print(f"\r{line:{long}}", end="", file=sys.stderr, flush=True)
        long = max(long, len(line))

    try:
        yield report
    finally:
        print(f"\r{'':{long}}\r", end="", file=sys.stderr, flush=True)


class Interruption:
    """Whether Ctrl-C came."""

    happened = False


@contextmanager
def until_interrupted() -> Iterator[Interruption]:
    """Ctrl-C ends the block, and what was finished in it can be shown."""
    interruption = Interruption()
    try:
        yield interruption
    except KeyboardInterrupt:
        interruption.happened = True
