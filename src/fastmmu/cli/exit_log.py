"""--exits, --plot and --exit-stat of `fastmmu run`: where the VM exits of its runs go."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastmmu.cli import options as shared
from fastmmu.cli import terminal
from fastmmu.cli.experiment import add_size
from fastmmu.cli.progress import undisturbed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fastmmu.machine.result import Result
    from fastmmu.machine.simulation import Exits
    from fastmmu.report.exit_plot import ExitHistory
    from fastmmu.report.exit_stat import ExitStat
    from fastmmu.report.exits import ExitFile
    from fastmmu.trace import Trace

__all__ = ["RunLog", "add_exits", "check_exits"]


def add_exits(parser: argparse.ArgumentParser) -> None:
    """--exits, --plot, --exit-stat."""
    group = parser.add_argument_group("the VM exits")
    group.add_argument(
        "--exits",
        metavar="FILE",
        help="every exit, a row each: .arrow, .feather, .parquet (need fastmmu[arrow]) or .csv; or a line each, as a "
        "tracer prints kvm:kvm_exit: .txt (trace-cmd report), .perf (perf script)",
    )
    group.add_argument(
        "--plot",
        metavar="FILE",
        help="exits over time, by reason, as .png, .svg or .pdf (needs fastmmu[plot]); with "
        "--interval cycles, TLB misses and exits over time",
    )
    group.add_argument(
        "--exit-stat",
        action="store_true",
        help="exits by reason as `perf kvm stat` has them: samples, time %%, min, mean, max",
    )
    add_size(group)


def check_exits(options: argparse.Namespace) -> None:
    """Refuse before the run what could not be written after it."""
    if options.exits is not None:
        from fastmmu.report import exits

        exits.check_exits(options.exits)
    if options.plot is not None:
        from fastmmu.report.figure import check_picture, sized

        sized(options.size)
        check_picture(options.plot)


class RunLog:
    """The exits of all runs: in a file, as they come, and counted for a picture."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.histories: list[ExitHistory] = []
        self.stats: list[ExitStat] = []
        self.file: ExitFile | None = None
        self.failure: OSError | None = None
        self._stack = ExitStack()

    def __enter__(self) -> RunLog:
        if self.options.exits is not None:
            from fastmmu.report.exits import ExitFile

            file = ExitFile(self.options.exits, command=getattr(self.options, "command_line", ""))
            self.file = self._stack.enter_context(file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def of(self, trace: Trace) -> Exits:
        """Those of a trace."""
        if self.options.plot is not None and self.options.interval is None:
            from fastmmu.report.exit_plot import ExitHistory

            self.histories.append(ExitHistory(trace.name))
        if self.options.exit_stat:
            from fastmmu.report.exit_stat import ExitStat

            self.stats.append(ExitStat(trace.name))
        return partial(self._came, trace.name, [*self.histories[-1:], *self.stats[-1:]])

    def _came(self, name: str, sinks: list[Any], records: npt.NDArray[np.void]) -> None:
        undisturbed(partial(self._add, name, sinks, records))

    def _add(self, name: str, sinks: list[Any], records: npt.NDArray[np.void]) -> None:
        for sink in sinks:
            sink.add(records)
        if self.file is not None and self.failure is None:
            try:
                self.file.write(records, name)
            except OSError as error:  # a full disk: the runs go on, their results are shown
                self.failure = error

    def finish(self, results: Sequence[Result]) -> None:
        """The file is whole; the picture is drawn."""
        if self.failure is not None:
            raise self.failure
        if self.file is not None:
            self.file.keep()
        if self.stats and not shared.to_stdout(self.options):
            from fastmmu.report.exit_stat import exit_stat

            for stat, result in zip(self.stats, results, strict=False):
                how: dict[str, Any] = {"width": terminal.width(), "colour": terminal.colour()}
                text = exit_stat(stat, vendor=result.config.vendor, **how)
                terminal.say(text + "\n")
        if self.histories:
            from fastmmu.report.exit_plot import plot_exits

            for history, result in zip(self.histories, results, strict=False):
                history.until(result.counters["accesses"])
            plot_exits(self.histories, self.options.plot)
