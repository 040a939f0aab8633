"""Recording: a program under Valgrind's lackey, its accesses written as fastmmu's own files while it runs.

    program ── Valgrind ── pipe, or sockets ── _Process: lines to events ── .arrow

Nothing of the text is kept. Without children the log is a pipe. With them each program that is started has a socket,
and each process on it, which is an address space, a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastmmu.errors import ConfigError, TraceError
from fastmmu.ops import Op
from fastmmu.trace import lackey_parse_py as lackey
from fastmmu.trace import valgrind
from fastmmu.trace.arrow import Writer
from fastmmu.trace.events import empty_batch
from fastmmu.trace.names import codec_of_name, format_of_name, printable, uncompressed
from fastmmu.trace.table import pyarrow
from fastmmu.trace.valgrind_log import TEXT, Log, Pipe, Sockets
from fastmmu.trace.whole import whole_file

__all__ = ["Recorded", "Recording", "record"]

_BATCH = 1 << 18  # events
_BATCH_OF_MANY = 1 << 15
_TURN = 0.1
_GRACE = 3.0  # seconds that a program has to end after it was told to; Valgrind asks for signals now and then
_SUMMED = b"== Exit code:"  # in the last lines of lackey's
_TAIL = 256
_BANNER = 1 << 16
_NEVER_STARTED = (126, 127)  # exit codes of Valgrind

Stopped = Callable[[], int]


@dataclass
class Recorded:
    """A file: ``events`` in it, ``instructions`` among them; ``command`` what the process ran, ``pid`` its number,
    ``number`` which of the processes it was, from 1."""

    number: int
    path: str
    command: str = ""
    pid: int = 0
    events: int = 0
    instructions: int = 0


@dataclass
class Recording:
    """What a program came to.

    ``status``: how it ended, as of `subprocess`; ``interrupted``: it was ended by a signal to the recorder,
    ``limited``: because there were enough events; ``other_lines``: lines that were no accesses; ``replaced``: a process
    stopped being recorded before it ended, as one does that becomes another program (exec).
    """

    status: int = 0
    interrupted: bool = False
    limited: bool = False
    other_lines: int = 0
    replaced: bool = False
    files: list[Recorded] = field(default_factory=list)


class _Process:
    """The text of one process, as events in its file."""

    def __init__(self, said: Recorded, forked_of: _Process | None, skip: int, limit: int | None, batch: int) -> None:
        self.said = said
        self.full = False
        self.ended = False
        self._forked_of = forked_of
        self._head: bytes | None = b"" if forked_of is None else None
        self.other_lines = 0
        self._skip = skip
        self._left = limit
        self._text = bytearray(2 * TEXT)
        self._stop = 0
        self._pid = 0
        self._batch = empty_batch(batch)
        self._n = 0
        self._files = contextlib.ExitStack()
        self._writer: Writer | None = None

    def feed(self, data: bytes) -> None:
        """The next bytes of the log, at most TEXT."""
        if self._head is not None:
            self._look(data)
        self.ended |= _SUMMED in data[-_TAIL:]
        if self.full:
            return
        text, stop = self._text, self._stop + len(data)
        text[self._stop : stop] = data
        start = 0
        while True:
            batch = self._batch
            start, self._n, _, fault, self._pid, others = lackey.parse(
                text, start, stop, False, batch.op, batch.size, batch.addr, self._n, self._pid, True
            )
            self.other_lines += others
            if fault:
                raise TraceError(f"Valgrind's log holds lines of another process than {self._pid}", path=self.said.path)
            if self._n < len(batch):
                break
            self._flush()
        self._stop = stop - start
        if self._stop > TEXT:  # no line is so long
            self._stop = 0
            self.other_lines += 1
        text[: self._stop] = text[start : start + self._stop]
        if self._left is not None and self._n - self._skip >= self._left:
            self._flush()

    def _look(self, data: bytes) -> None:
        """The command stands in the banner, which comes in pieces."""
        assert self._head is not None
        self._head += data[:_BANNER]
        found = re.search(rb"== Command: (.*)\n", self._head)
        if found is not None:
            self.said.command = printable(found[1].decode("utf-8", "backslashreplace"))
        if found is not None or len(self._head) > _BANNER:
            self._head = None

    def _flush(self) -> None:
        batch = self._batch[: self._n]
        batch = batch[min(self._skip, self._n) :]
        self._skip -= self._n - len(batch)
        if self._left is not None:
            batch = batch[: self._left]
            self._left -= len(batch)
            self.full = self._left == 0
        self._n = 0
        if not len(batch):
            return
        if self._writer is None:
            out = self._files.enter_context(whole_file(self.said.path))
            self._writer = self._files.enter_context(Writer(out, instructions="fetches", compression="lz4"))
        self._writer.write(batch)
        self.said.events += len(batch)
        self.said.instructions += int((batch.op == Op.FETCH).sum())

    def close(self, ended: str | None) -> Recorded | None:
        """The file is complete; None where there was no event. ended: why it is not all of the process."""
        self._flush()
        if self._forked_of is not None:
            self.said.command = f"fork of {self._forked_of.said.command}"
        if self._writer is None:
            return None
        if ended is not None:
            self._writer.mark(ended)
        self._files.close()
        return self.said

    def drop(self, error: BaseException) -> None:
        """The file does not appear."""
        with contextlib.suppress(BaseException):
            self._files.__exit__(type(error), error, error.__traceback__)


def record(
    words: Sequence[str],
    out: str,
    *,
    skip: int = 0,
    limit: int | None = None,
    children: bool = False,
    stopped: Stopped = lambda: 0,
    progress: Callable[[str, int], None] | None = None,
) -> Recording:
    """Run a program under Valgrind, with the standard streams of this process, and write what it accesses.

    :param words: the program and its arguments.
    :param out: an .arrow file, which appears when the program has ended; with `children` that of the first process,
        those of others have a number before the suffix.
    :param skip, limit: events of each process to leave out at its begin, and to write at most. Without `children` the
        program is ended at its limit.
    :param stopped: the number of a signal that came, or 0; the program is ended then, its files are kept, and marked.
    :raises ConfigError: Valgrind is not installed, or cannot run the program. :raises TraceError: the file cannot be
        written. :raises MissingExtraError: pyarrow is not installed.
    """
    pyarrow("a recording")
    valgrind.check_program(words)
    _check_out(out)
    found = valgrind.find()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastmmu-"))) if children else None
        log: Log = Pipe() if folder is None else Sockets(folder)
        stack.callback(log.close)
        session = _Session(log, out, words, skip, limit, children)
        try:
            process = log.start(found, words)
        except OSError as error:
            raise ConfigError(f"Valgrind cannot be started: {error.strerror}; reinstall it") from error
        try:
            session.run(process, stopped, progress or (lambda what, events: None))
            return session.finish(process)
        except BaseException as error:
            session.drop(error)
            if isinstance(error, OSError):
                raise _unwritten(error, out) from error
            raise
        finally:
            _end(process)


def _check_out(out: str) -> None:
    if format_of_name(out) != "arrow" or codec_of_name(out) is not None:
        raise ConfigError(
            f"{out!r} is no name of a recording; it ends in .arrow, and `fastmmu trace convert` makes others"
        )
    target = Path(out)
    if target.exists() and not target.is_file():
        raise TraceError("this is no regular file; name one to write", path=out)
    if not target.parent.is_dir():
        raise TraceError(f"there is no directory {target.parent}; make it first", path=out)
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise TraceError("no permission to write; name another file with -o", path=out)


def _unwritten(error: OSError, out: str) -> TraceError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "; free some space, or record less: --limit N, --skip N" if full else ""
    return TraceError(f"cannot be written: {error.strerror or error}{remedy}", path=str(error.filename or out))


class _Session:
    """The processes of a recording."""

    def __init__(self, log: Log, out: str, words: Sequence[str], skip: int, limit: int | None, children: bool) -> None:
        self._log = log
        self._out = out
        self._words = words
        self._bounds = skip, limit
        self._children = children
        self._open: dict[tuple[int, int], _Process] = {}
        self._first: dict[int, _Process] = {}
        self._count = 0
        self._events = 0
        self._told = 0
        self.made = Recording()

    def run(self, process: subprocess.Popen[bytes], stopped: Stopped, progress: Callable[[str, int], None]) -> None:
        """Read the log until the program has ended, or a signal or the limit ends it."""
        deadline: float | None = None
        while True:
            data = self._log.read(_TURN, process)
            if data is None:
                break
            for source, pid, piece in data:
                self._feed(source, pid, piece)
            number = 0 if deadline is not None else stopped()
            if number:
                self.made.interrupted = True
                process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
                deadline = time.monotonic() + _GRACE
            elif deadline is None and not self._children and any(one.full for one in self._open.values()):
                self.made.limited = True
                break
            elif deadline is not None and time.monotonic() > deadline:
                break
            progress(self._words[0], self._events + sum(one.said.events for one in self._open.values()))

    def _feed(self, source: int, pid: int, piece: bytes | None) -> None:
        if piece is None:
            for key in [key for key in self._open if key[0] == source]:
                self._close(key, None)
            return
        one = self._open.get((source, pid))
        if one is None:
            one = self._open[source, pid] = self._new(source, pid)
            self._first.setdefault(source, one)
        one.feed(piece)
        if self._children and one.ended:
            self._close((source, pid), None)

    def _new(self, source: int, pid: int) -> _Process:
        self._count += 1
        name = self._out
        if self._count > 1:
            plain = uncompressed(name)
            name = str(plain.with_name(f"{plain.stem}.{self._count}{plain.suffix}"))
        batch = _BATCH_OF_MANY if self._children else _BATCH
        return _Process(Recorded(self._count, name, pid=pid), self._first.get(source), *self._bounds, batch)

    def _close(self, key: tuple[int, int], ended: str | None) -> None:
        one = self._open.pop(key)
        self.made.other_lines += one.other_lines
        self.made.replaced |= not one.ended
        said = one.close(ended)
        if said is not None:
            self._events += said.events
            self.made.files.append(said)

    def finish(self, process: subprocess.Popen[bytes]) -> Recording:
        """The program has ended, or is ended now: files are complete."""
        _end(process)
        self.made.status = process.returncode
        if self._count == 0 and not self.made.interrupted:
            what = "its message is above" if process.returncode in _NEVER_STARTED else "nothing was recorded"
            raise ConfigError(
                f"{self._words[0]}: Valgrind could not run it (exit code {process.returncode}); {what}. Name a program "
                "that this machine can run"
            )
        for key in list(self._open):
            self._close(key, "interrupted" if self.made.interrupted else None)
        if not self.made.files and not self.made.interrupted:
            raise TraceError(
                f"no event was recorded: the program ended before --skip {self._bounds[0]}"
                if self._bounds[0]
                else "no event was recorded: the program ended at once",
                path=self._out,
            )
        self.made.files.sort(key=lambda said: said.number)
        return self.made

    def drop(self, error: BaseException) -> None:
        """Nothing more appears."""
        for one in self._open.values():
            one.drop(error)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The program ends, if it has not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
