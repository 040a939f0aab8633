"""`fastmmu sweep`: a study file, run where it was left."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from fastmmu.cli import interruption, terminal
from fastmmu.cli import options as shared
from fastmmu.cli.progress import UntilInterrupted, progress

__all__ = ["DESCRIPTION", "EPILOG", "USAGE", "add", "handle"]

USAGE = "[options] STUDY.toml"

DESCRIPTION = """\
Runs what a study file describes, traces × configurations × cost models, and keeps a row a run in a Parquet data set:
all fields of the configuration, counters, cycles, and what it was made of. A run that is finished is never made again:
started anew after an end of any kind, the command makes what is missing.
"""

EPILOG = """\
a study file:
  [traces]
  sqlite = "sqlite"                                a bundled trace, a file or a URL
  app = { path = "app.arrow", limit = "10M" }
  [config]
  memory = "8G"                                of all configurations: fields of fastmmu.Config
  [grid]
  mmu = ["shadow", "ept"]                      every combination
  stlb = ["512/4", "1024/8", "2048/16"]
  [[configs]]
  mmu = "native"                               one more
  [costs]
  skylake = {}
  prescott = { generation = "prescott" }

examples:
  fastmmu sweep study.toml --dry-run           the runs, and how long they may take
  fastmmu sweep study.toml                     on all processors of this machine
  fastmmu sweep study.toml --executor dask:tcp://head:8786
  python -c 'import pandas; print(pandas.read_parquet("study.results/runs"))'

executors: processes[:N] (default), threads[:N], dask[:ADDRESS], ray[:ADDRESS], slurm[:K=V,...], mpi[:N], MODULE:NAME
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("study", metavar="STUDY.toml", help="what is to be run; docs/studies.md")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and about how long it takes")
    parser.add_argument("--executor", default="processes", metavar="WORD", help="where the runs are made, see below")
    parser.add_argument("--jobs", type=shared.count(1), metavar="N", help="processes; default: one a processor")
    parser.add_argument("--results", metavar="FOLDER", help="in place of the study's own, STUDY.results beside it")
    shared.add_quiet(parser)


def handle(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from fastmmu.errors import FastmmuError
    from fastmmu.study.sweep.run import Study
    from fastmmu.study.sweep.table import plan_table, results_table
    from fastmmu.threads.lanes import workers

    study = Study.read(options.study, results=options.results)
    failure: Exception | None = None
    with progress(quiet=options.quiet) as report:

        def work() -> Iterator[object]:
            yield study.plan(lambda trace, part, events: report(f"reading {trace}", part, events))
            if not options.dry_run:
                yield study.run(
                    options.executor,
                    jobs=options.jobs,
                    progress=lambda done, runs, last: report(f"[{done}/{runs}] {last}", done / runs, done),
                )

        steps = UntilInterrupted(work())
        try:
            for _ in steps:
                pass
        except (FastmmuError, OSError) as error:
            failure = error
    if steps.happened and not study.planned:
        raise KeyboardInterrupt
    if failure is not None and not study.planned:
        raise failure
    missing = study.missing()
    runs = study.plan()
    if options.dry_run:
        terminal.say(plan_table(runs, missing, width=terminal.width(), colour=terminal.colour()) + "\n")
        seconds = study.estimate(missing)
        n = workers(options.jobs)
        terminal.say(f"{len(runs)} runs, {len(missing)} to do: about {_time(seconds)} in one process, "
                     f"{_time(seconds / n)} in {n}; results in {study.store.folder}")  # fmt: skip
        return 0
    if len(missing) < len(runs):
        terminal.say(results_table(study.results(), width=terminal.width(), colour=terminal.colour()) + "\n")
    terminal.say(f"{len(runs) - len(missing)} of {len(runs)} runs finished; results in {study.store.runs}"
                 + (", interrupted: start again for the rest" if steps.happened else ""))  # fmt: skip
    if failure is not None:
        raise failure
    return interruption.code() if steps.happened else 0


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
