"""Where runs are made: processes of this machine, Dask, Ray, Slurm, MPI, or whatever has `Executor.submit`.

    WORD[:REST]       processes[:N]   N processes of this machine; the default, one a processor
                      threads[:N]     in this process
                      dask[:ADDRESS]  a Dask cluster, as tcp://host:8786; without one a cluster of this machine
                      ray[:ADDRESS]   a Ray cluster; without one a cluster of this machine
                      slurm[:K=V,..]  a job a run, through submitit; K=V are its parameters
                      mpi[:N]         ranks of MPI, through mpi4py.futures
                      MODULE:NAME     a function that makes one

An executor of another package may have futures of its own kind: all that is asked of them is `result` and `done`.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from fastmmu.errors import ConfigError, MissingExtraError, StudyError
from fastmmu.threads.lanes import workers

__all__ = ["EXECUTORS", "Pool", "opened"]

_LOOK = 0.1  # seconds between two looks at futures that tell nobody when they are done


class Pool:
    """An executor, however it is made: submits, and makes itself anew when it broke.

    `share`: gives an object to all workers once, and returns what stands for it in the arguments of `submit`. `ours`:
    :meth:`close` is called at the end; one of a caller's goes on.
    """

    def __init__(
        self, make: Callable[[], Any], at_once: int, share: Callable[[Any, Any], Any] | None = None, ours: bool = True
    ) -> None:
        self._make, self.at_once, self._share, self._ours = make, at_once, share, ours
        self.executor = make()

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return _concurrent(self.executor.submit(work, *arguments))

    def share(self, thing: Any) -> Any:
        return thing if self._share is None else self._share(self.executor, thing)

    def give_up(self, futures: Iterable[Future[Any]]) -> None:
        """What has not begun of these is not wanted any more.

        Of processes that :meth:`close` ends it is left to that: the thread that attends to them dies of a future that
        another has cancelled when a worker is gone, as by Ctrl-C (terminate_broken() of CPython's concurrent.futures).
        """
        if not (self._ours and isinstance(self.executor, ProcessPoolExecutor)):
            for future in futures:
                future.cancel()

    def again(self) -> None:
        """A worker died, and took an executor of this machine with it: another one."""
        self.close()
        self.executor = self._make()

    def close(self) -> None:
        """Give up what has not begun; what runs is not waited for, and ends where it is a process of ours."""
        running = list((getattr(self.executor, "_processes", None) or {}).values())  # shutdown() forgets them
        with contextlib.suppress(Exception):
            self.executor.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.kill()


def _concurrent(future: Any) -> Future[Any]:
    """A future of another package as one of the standard library."""
    if isinstance(future, Future):
        return future
    ours: Future[Any] = Future()
    ours.set_running_or_notify_cancel()

    def end(_: Any = None) -> None:
        try:
            result = future.result()
        except BaseException as error:
            ours.set_exception(error)
        else:
            ours.set_result(result)

    def watch() -> None:
        while not future.done():
            time.sleep(_LOOK)
        end()

    if hasattr(future, "add_done_callback"):
        future.add_done_callback(end)
    else:
        threading.Thread(target=watch, daemon=True).start()
    return ours


# ---- of this machine ---------------------------------------------------------------------------------------------


def _attend(parent: int) -> None:
    """A process that makes runs: Ctrl-C is for the one that waits for the results, without which it ends, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _processes(rest: str) -> Pool:
    n = _number("processes", rest)
    context = multiprocessing.get_context("spawn")
    return Pool(lambda: ProcessPoolExecutor(n, mp_context=context, initializer=_attend, initargs=(os.getpid(),)), n)


def _threads(rest: str) -> Pool:
    n = _number("threads", rest)
    return Pool(lambda: ThreadPoolExecutor(n), n)


# ---- of others ---------------------------------------------------------------------------------------------------


def _dask(rest: str) -> Pool:
    distributed = _package("distributed", "dask")
    try:
        client = distributed.Client(rest or None, timeout=10) if rest else distributed.Client(processes=True)
    except (OSError, ValueError) as error:
        raise StudyError(f"no Dask scheduler answers at {rest}: {error}") from error
    try:
        client.wait_for_workers(1, timeout=60)
    except TimeoutError as error:
        client.close()
        raise StudyError(f"the Dask scheduler at {rest} has no workers; start some: dask worker {rest}") from error
    at_once = sum(client.nthreads().values()) or 1
    # every run by itself: a result of one that was equal before would hide what a worker does now
    return Pool(
        lambda: _DaskExecutor(client),
        at_once,
        lambda executor, thing: client.scatter(thing, broadcast=True, hash=False),
    )


class _DaskExecutor:
    def __init__(self, client: Any) -> None:
        self.client = client

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return self.client.submit(work, *arguments, pure=False)

    def shutdown(self, **_: Any) -> None:
        self.client.close()


def _ray(rest: str) -> Pool:
    ray = _package("ray", "ray")
    if not ray.is_initialized():
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            ray.init(address=rest, **quiet) if rest else ray.init(include_dashboard=False, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StudyError(f"no Ray cluster at {rest or 'this machine'}: {error}") from error
    at_once = int(ray.cluster_resources().get("CPU", 1))
    return Pool(lambda: _RayExecutor(ray), at_once, lambda executor, thing: ray.put(thing))


class _RayExecutor:
    def __init__(self, ray: Any) -> None:
        self.ray = ray

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return self.ray.remote(max_retries=3)(work).remote(*arguments).future()

    def shutdown(self, **_: Any) -> None:
        self.ray.shutdown()


def _slurm(rest: str) -> Pool:
    submitit = _package("submitit", "slurm")
    parameters: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"slurm:{rest}: {part!r} is no K=V, as in slurm:slurm_partition=short,timeout_min=60")
        parameters[name] = int(value) if value.isdecimal() else value
    cluster = parameters.pop("cluster", None)

    def make() -> Any:
        executor = submitit.AutoExecutor(folder=".fastmmu-slurm/%j", cluster=cluster)
        executor.update_parameters(**parameters)
        return executor

    return Pool(make, 512)


def _mpi(rest: str) -> Pool:
    futures = _package("mpi4py.futures", "mpi")
    n = _number("mpi", rest) if rest else None
    return Pool(lambda: futures.MPIPoolExecutor(n), n or 64)


def _named(text: str) -> Pool:
    module, _, name = text.partition(":")
    there = f"choose from {', '.join(EXECUTORS)}, or MODULE:NAME"
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"executor {text!r}: there is none; {there}")
    try:
        make = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever an import may raise
        raise ConfigError(f"executor {text!r}: {type(error).__name__}: {error}; {there}") from error
    return Pool(make, 64)


EXECUTORS: dict[str, Callable[[str], Pool]] = {
    "processes": _processes, "threads": _threads, "dask": _dask, "ray": _ray, "slurm": _slurm, "mpi": _mpi,
}  # fmt: skip
"""Word → what makes one, of what stands behind the colon."""


def _number(word: str, rest: str) -> int:
    if rest and not rest.isdecimal():
        raise ConfigError(f"{word}:{rest}: {rest!r} is no number; write {word}:4, or {word} for one a processor")
    return workers(int(rest) if rest else None)


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"the executor {extra}", extra) from error


@contextlib.contextmanager
def opened(executor: str | Executor | Any, jobs: int | None = None) -> Iterator[Pool]:
    """The pool that is meant, until the block ends. An executor of the caller's is left open.

    :param executor: a word of the table above, or anything with `submit`. :param jobs: processes, where no number is
        given with the word.
    :raises ConfigError: there is no such word.
    """
    if not isinstance(executor, str):
        if not callable(getattr(executor, "submit", None)):
            raise ConfigError(
                f"executor={executor!r} has no submit(); give one, or a word out of {', '.join(EXECUTORS)}"
            )
        yield Pool(lambda: executor, 64, ours=False)
        return
    word, _, rest = executor.partition(":")
    if jobs is not None and word in ("processes", "threads") and not rest:
        rest = str(jobs)
    pool = EXECUTORS[word](rest) if word in EXECUTORS else _named(executor)
    try:
        yield pool
    finally:
        pool.close()
