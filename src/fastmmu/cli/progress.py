"""Progress on standard error, a bar on a terminal and nothing in a pipe; and steps of work until a signal comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from fastmmu.cli import interruption

__all__ = ["Report", "UntilInterrupted", "progress", "step", "undisturbed"]

Report = Callable[[str, float | None, int], None]
"""Called with what runs, the fraction done (None: unknown) and the events done."""

T = TypeVar("T")

_EVERY = 0.1  # seconds between two updates of the plain line


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Report]:
    """A display for as long as the block runs; it leaves nothing behind."""
    if quiet or not sys.stderr.isatty():
        yield _silent
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
    interruption.begin()
    with rich.progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None, visible=False, events="")

        def report(what: str, fraction: float | None, events: int) -> None:
            interruption.check()
            total = None if fraction is None else 1.0
            done = fraction or 0.0
            bars.update(task, description=what, visible=True, total=total, completed=done, events=number(events))

        yield report


def _silent(what: str, fraction: float | None, events: int) -> None:
    interruption.check()


@contextmanager
def _plain() -> Iterator[Report]:
    from fastmmu.report.table import number

    last = 0.0
    long = 0

    def report(what: str, fraction: float | None, events: int) -> None:
        nonlocal last, long
        interruption.check()
        if time.monotonic() - last < _EVERY:
            return
        last = time.monotonic()
        part = "" if fraction is None else f"{fraction:4.0%}  "
        line = f"{what}  {part}{number(events)} events"
        print(f"\r{line:{long}}", end="", file=sys.stderr, flush=True)
        long = max(long, len(line))

    interruption.begin()
    try:
        yield report
    finally:
        print(f"\r{'':{long}}\r", end="", file=sys.stderr, flush=True)


class UntilInterrupted(Iterator[T], Generic[T]):
    """The items of an iterator, each a step of work, until a signal comes. `happened`: one came.

    An item that was finished is never lost: the signal ends the step that runs, or keeps the next from its begin. Where
    several steps run at a time, the items behind it that are there are had by throwing KeyboardInterrupt in, again and
    again (:func:`fastmmu.threads.lanes.in_lanes`).
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self.happened = False

    def __next__(self) -> T:
        then = interruption.after(interruption.mode())
        if self.happened or interruption.came():
            self.happened = True
            return self._left()
        try:
            interruption.enter(interruption.RUNNING)
            return next(self._items)
        except KeyboardInterrupt:
            self.happened = True
            raise StopIteration from None
        finally:
            interruption.enter(then)

    def _left(self) -> T:
        try:
            if isinstance(self._items, Generator):
                item: T = self._items.throw(KeyboardInterrupt)
                return item
        except KeyboardInterrupt:
            pass
        raise StopIteration


interruption.calm(UntilInterrupted.__next__.__code__)


def undisturbed(work: Callable[[], None]) -> None:
    """A part of a step that a signal does not break off: it ends the step behind it.

    :raises KeyboardInterrupt: a signal came meanwhile.
    """
    before, then = interruption.came(), interruption.mode()
    try:
        interruption.enter(interruption.FINISHING)
        work()
    finally:
        interruption.enter(then)
    if interruption.came() and not before:
        raise KeyboardInterrupt


def step(work: Callable[[], T]) -> T:
    """What one step of work comes to.

    :raises KeyboardInterrupt: a signal ended it.
    """
    for value in UntilInterrupted(work() for _ in range(1)):
        return value
    raise KeyboardInterrupt
