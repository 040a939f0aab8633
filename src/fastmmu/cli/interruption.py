"""SIGINT, SIGTERM and SIGHUP: what is finished is printed and written, and the program ends with 128 + the signal.

    STARTING    imports, options: a signal ends the program at once, there is nothing to keep
    RUNNING     a step of the work: the signal is raised in it, as KeyboardInterrupt, and is taken where the step is
                (`progress.UntilInterrupted`)
    FINISHING   tables are made, files are written: it waits until that is done
    PRINTING    it waits, too, but where nobody reads the output for PATIENCE seconds the program ends

A second signal, later than PATIENCE after the first, ends the program wherever it is. Files appear whole or not at all
(`trace.whole`). `take` is for the program alone: of the command line as a function, a signal is the caller's.

Imports next to nothing, so that it stands before everything else is imported.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Any

__all__ = ["FINISHING", "INTERRUPTED", "PRINTING", "RUNNING", "STARTING", "after", "begin", "calm", "came", "check",
           "code", "done", "enter", "mode", "printing", "take"]  # fmt: skip

INTERRUPTED = 130  # exit code: 128 + SIGINT, as shells have it
PATIENCE = 0.4  # seconds
_SOON = 1e-3
STARTING, RUNNING, FINISHING, PRINTING = range(4)

_mode = FINISHING
_number = 0  # of the first signal that came
_came = 0.0  # when
_raised = False  # it was raised, and nobody has taken it yet
_calm: set[CodeType] = set()


def take() -> None:
    """Handle the signals from here on, but for those that are ignored, as of a job in the background."""
    global _mode
    _mode = STARTING
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _arrived)
    signal.signal(signal.SIGALRM, _again)
    sys.unraisablehook = _lost


def calm(code: CodeType) -> None:
    """Nothing is raised in a function of this code, which asks whether a signal came."""
    _calm.add(code)


def mode() -> int:
    """What the program does: STARTING, RUNNING, FINISHING or PRINTING."""
    return _mode


def enter(new: int) -> None:
    """From here on the program does something else."""
    global _mode, _raised
    _mode = new
    _raised = False
    if new == PRINTING and _number:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)


calm(enter.__code__)


def after(before: int) -> int:
    """What the program does after a block, if it did `before`: once there was one it is STARTING no more."""
    return FINISHING if before == STARTING else before


def begin() -> None:
    """The program has something to lose, if only a display on the terminal."""
    if _mode == STARTING:
        enter(FINISHING)


def came() -> bool:
    """Whether there was a signal."""
    return _number != 0


def check() -> None:
    """Raise a signal once more where it was raised in the step that runs and somebody let it go."""
    if _raised and _mode == RUNNING:
        raise KeyboardInterrupt


def code() -> int:
    """Exit code after an interruption."""
    return 128 + _number if _number else INTERRUPTED


def done(code: int) -> int:
    """The program ends: no signal changes that any more. Its exit code, `code` if there was no signal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    return 128 + _number if _number else code


class printing:
    """A block that writes to where somebody reads, or does not: standard output, a pipe."""

    def __enter__(self) -> None:
        self._before = _mode
        enter(PRINTING)

    def __exit__(self, *_: object) -> None:
        enter(after(self._before))


def _arrived(number: int, frame: FrameType | None) -> None:
    global _number, _came
    now = time.monotonic()
    if _number and now - _came > PATIENCE:
        _leave()
    if not _number:
        _number, _came = number, now
    if _mode == STARTING:
        _leave()
    if _mode == PRINTING:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    if _mode == RUNNING and not _raised:
        _raise(frame)


def _raise(frame: FrameType | None) -> None:
    global _raised
    if frame is not None and frame.f_code in _calm:
        signal.setitimer(signal.ITIMER_REAL, _SOON)
        return
    _raised = True
    raise KeyboardInterrupt


def _again(number: int, frame: FrameType | None) -> None:
    """Time is up for who reads the output; or a signal could not be raised where it came."""
    if _mode == PRINTING:
        _leave()
    if _mode == RUNNING:
        _raise(frame)


def _lost(args: Any) -> None:
    """What was raised in a finalizer or callback, where Python lets every exception go."""
    if _number and issubclass(args.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, _SOON)
    else:
        sys.__unraisablehook__(args)


def _leave() -> None:
    """End here and now."""
    whole = sys.modules.get("fastmmu.trace.whole")
    for part in list(getattr(whole, "parts", ())):
        with contextlib.suppress(OSError):
            os.unlink(part)
    with contextlib.suppress(OSError, ValueError):
        shown = b"\x1b[?25h" if os.isatty(2) else b""  # the cursor, which a display may have hidden
        if select.select([], [2], [], 0)[1]:
            os.write(2, shown + b"fastmmu: interrupted\n")
    os._exit(code())
