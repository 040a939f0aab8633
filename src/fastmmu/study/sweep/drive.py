"""Runs through an executor: a few at a time, each kept as it comes, those of a worker that died made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any

from fastmmu.errors import StudyError
from fastmmu.study.sweep.executors import Pool
from fastmmu.study.sweep.work import GivenTrace, Task, TraceSpec, given_up, run_task

__all__ = ["Drive", "Progress"]

Progress = Callable[[int, int, str], None]
Work = tuple[Task, TraceSpec | GivenTrace]

_LOOK = 0.2  # seconds between two calls of progress
TRIES = 3
"""Times that an executor may break without a single run coming of it."""


class Drive:
    """The way of tasks through a pool. keep: of a task and what came of it, returns how many runs these were."""

    def __init__(
        self,
        pool: Pool,
        work: Sequence[Work],
        keep: Callable[[Task, Any], int],
        runs: int,
        missing: int,
        progress: Progress | None,
    ) -> None:
        self.pool, self.keep, self.runs, self.missing, self.progress = pool, keep, runs, missing, progress
        self.waiting = list(reversed(work))
        self.flying: dict[Future[Any], Work] = {}
        self.shared: dict[int, Any] = {}
        self.made = 0
        self.failed: list[str] = []
        self.last = ""

    def run(self) -> None:
        """Until all are done.

        :raises StudyError: runs failed; the others are kept.
        """
        tries = 0
        given_up.clear()
        try:
            while self.waiting or self.flying:
                made = self.made
                try:
                    self._fill()
                    self._take()
                except BrokenExecutor as error:
                    tries = 0 if self.made > made else tries + 1
                    if tries == TRIES:
                        raise StudyError(
                            f"the workers die: {error}. What is finished is kept; give them more memory, or fewer at a "
                            "time with --jobs, and start again"
                        ) from error
                    self._again()
                else:
                    tries = 0 if self.made > made else tries
        except BaseException:
            given_up.set()
            self.pool.give_up(self.flying)
            raise
        if self.failed:
            raise StudyError(
                f"{len(self.failed)} of {self.runs} runs failed, the others are kept: {'; '.join(self.failed[:3])}"
                + ("; ..." if len(self.failed) > 3 else ""),
                tuple(self.failed),
            )

    def _fill(self) -> None:
        """So many that no worker waits for the next."""
        while self.waiting and len(self.flying) < 2 * self.pool.at_once:
            task, spec = self.waiting[-1]
            future = self.pool.submit(run_task, task, self._shared(spec))
            self.flying[future] = self.waiting.pop()

    def _shared(self, spec: TraceSpec | GivenTrace) -> Any:
        """A trace that has no file is given to the workers once."""
        if isinstance(spec, TraceSpec):
            return spec
        if id(spec) not in self.shared:
            self.shared[id(spec)] = self.pool.share(spec)
        return self.shared[id(spec)]

    def _take(self) -> None:
        done, _ = wait(self.flying, timeout=_LOOK, return_when=FIRST_COMPLETED)
        for future in done:
            task, _ = self.flying[future]
            error = future.exception()
            if error is None:
                self.made += self.keep(task, future.result())
            elif isinstance(error, (StudyError, BrokenExecutor)) or not isinstance(error, Exception):
                raise error
            else:
                self.failed.append(f"{task.trace} under {task.config.name}: {_said(error)}")
            del self.flying[future]
            self.last = f"{task.trace}: {task.config.name}"
        if self.progress is not None:
            self.progress(self.runs - self.missing + self.made, self.runs, self.last)

    def _again(self) -> None:
        """What was on its way is to be done; what is finished among it is taken first."""
        for future, work in self.flying.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                self.made += self.keep(work[0], future.result())
            else:
                self.waiting.append(work)
        self.flying.clear()
        self.shared.clear()
        self.pool.again()


def _said(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else 'no message'}"
