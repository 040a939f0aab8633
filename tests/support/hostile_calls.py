"""Every public callable with every hostile value: what it may raise, and that it neither crashes nor hangs.

    python -m tests.support.hostile_calls --calls 500000 --seed 1

Each callable (`public_calls`) gets hostile values for one parameter at a time, good ones for the rest, then
combinations at random. Calls run in forked children. What a child is about to call stands in shared memory, so that a
crash names it; a call that takes longer than `LIMIT` seconds ends its child by SIGALRM, and counts as one that hangs.
"""

from __future__ import annotations

import argparse
import faulthandler
import mmap
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.hostile_arguments import good
from tests.support.hostile_objects import World
from tests.support.hostile_values import everything, name_of
from tests.support.public_calls import ALLOWED, Call, calls

LIMIT = 60.0
BATCH = 500
"""Calls of a child."""
SLOW = 0.02
"""Seconds that a call may take on average: a callable that takes longer gets fewer calls."""
VALUES = everything()


@dataclass(frozen=True)
class Planned:
    """A call with hostile values, as indices into VALUES, for some parameters."""

    call: Call
    hostile: tuple[tuple[str, int], ...]

    def words(self) -> str:
        given = ", ".join(f"{name}={name_of(VALUES[i][1])} [{VALUES[i][0]}]" for name, i in self.hostile)
        return f"{self.call.name}({given})"


def plan(call: Call, rng: random.Random, n: int) -> list[Planned]:
    """About `n` calls: each parameter with each value as far as `n` goes, then combinations."""
    if not call.parameters:
        return [Planned(call, ())]
    single = [Planned(call, ((name, i),)) for name in call.parameters for i in range(len(VALUES))]
    rng.shuffle(single)
    found = [Planned(call, ()), *single[:n]]
    while len(found) < n:
        chosen = rng.sample(call.parameters, rng.randint(1, min(4, len(call.parameters))))
        found.append(Planned(call, tuple((name, rng.randrange(len(VALUES))) for name in chosen)))
    return found


def arguments(planned: Planned, world: World) -> dict[str, Any]:
    hostile = {name: VALUES[i][1] for name, i in planned.hostile}
    missing = [name for name in planned.call.required if name not in hostile]
    return {name: good(world, planned.call.name, name) for name in missing} | hostile


@dataclass
class Report:
    """What came of a run."""

    calls: int = 0
    seconds: float = 0.0
    returned: int = 0
    wrong: list[str] = field(default_factory=list)
    base: dict[str, str] = field(default_factory=dict)
    """Callables that refuse good values: name → the error."""


def outcome(planned: Planned, world: World) -> str | None:
    """None where it returned; the name of an allowed error; "!..." of one that is not."""
    try:
        planned.call.do(world, arguments(planned, world))
    except ALLOWED as error:
        return f"{type(error).__name__}: {said(error)}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return f"!{planned.words()} raised {type(error).__name__} at {place}: {said(error)}"
    return None


def said(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except Exception:
        return "what cannot be printed"


def child(batch: list[Planned], seed: int, shared: mmap.mmap, out: int) -> None:
    """Runs in a process of its own; `shared`: number of the call under way. A new world for each callable."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # a crash is reported here
    sys.stdin.close()
    current, world, left = "", World(seed), 0.0
    for i, planned in enumerate(batch):
        if planned.call.name != current:
            current, world = planned.call.name, World(seed + i)
            left = SLOW * sum(other.call.name == current for other in batch) + SLOW
        elif left < 0:  # a slow one: no more of it
            continue
        shared[:8] = i.to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        started = time.process_time()
        found = outcome(planned, world)
        left -= time.process_time() - started
        signal.setitimer(signal.ITIMER_REAL, 0)
        line = f"{i}\t{'' if found is None else ' '.join(found.split())}\n"
        os.write(out, line.encode("utf-8", "backslashreplace"))


def run_batch(batch: list[Planned], seed: int, report: Report) -> None:
    """Runs a batch in children, a new one behind each crash."""
    shared = mmap.mmap(-1, 4096)
    while batch:
        reader, writer = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reader)
                child(batch, seed, shared, writer)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as lines:
            for line in lines:
                number, what = line.rstrip("\n").split("\t", 1)
                report.calls += 1
                report.returned += not what
                if what.startswith("!"):
                    report.wrong.append(what[1:])
                elif what and not batch[int(number)].hostile and " " not in batch[int(number)].call.name:
                    report.base[batch[int(number)].call.name] = what
        _, status = os.waitpid(pid, 0)
        if status == 0:
            break
        at = int.from_bytes(shared[:8], "little")
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        how = "hangs" if number == signal.SIGALRM else f"ends the process: signal {number}, status {status}"
        report.calls += 1
        report.wrong.append(f"{batch[at].words()} {how}")
        batch = batch[at + 1 :]
    shared.close()


def run(n: int, seed: int, *, only: str = "", progress: Callable[[str], None] | None = None) -> Report:
    """About `n` calls, shared out among the callables by their parameters; those that are slow get fewer."""
    report, rng = Report(), random.Random(seed)
    chosen = [call for call in calls() if only in call.name]
    share = max(2, n // max(1, sum(min(len(call.parameters), 6) for call in chosen)))
    planned = [one for call in chosen for one in plan(call, rng, share * min(len(call.parameters), 6))]
    begun = time.perf_counter()
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)  # for those that write files
        try:
            for at in range(0, len(planned), BATCH):
                run_batch(planned[at : at + BATCH], seed + at, report)
                if progress is not None:
                    progress(f"{planned[at].call.name}: {report.calls:,} calls, {len(report.wrong)} wrong")
        finally:
            os.chdir(home)
    report.seconds = time.perf_counter() - begun
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500_000, help="about so many calls (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="only callables whose name has this in it")
    parser.add_argument("--verbose", action="store_true", help="a line for each callable")
    args = parser.parse_args()
    done = run(args.calls, args.seed, only=args.only, progress=print if args.verbose else None)
    for line in sorted(set(done.wrong)):
        print(f"WRONG {line}")
    for name, error in sorted(done.base.items()):
        print(f"refuses good values: {name}: {error}")
    n = len({call.name for call in calls()})
    print(f"{done.calls:,} calls of {n} public callables in {done.seconds:.0f} s: {done.returned:,} returned, "
          f"{len(done.wrong):,} raised another error, crashed or hung")  # fmt: skip
    return 1 if done.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
