"""Results and walks for people and files.

    Result ─┬─ rows ──── CSV, JSON, Parquet   (files)
            ├─ compare ─ one table, a row a scheme, and why   (table, why)
            ├─ explain ─ what each TLB did, and what flushes cost
            └─ single ── all counters of one run
    steps of a walk ──── walkview   (picture, outcome, bits, words)
    sampled runs ─────── estimates
    mappings ─────────── mappings; runs   (how contiguous they are)
    exits, as they come ─ exits   (files; tracepoint: lines as tracers print them), exit_plot   (over time),
                          exit_stat   (by reason)
    pictures ─────────── figure, run_plot   (runs side by side, or over time)
    simulated caches ─── latency   (of walks, as lines; where references were found)
    two files ────────── differences
    files, read back ─── stored ── Result
    a page of results ── page   (page.html; charts, time_charts, svg: inline pictures)

What one study alone shows is the study's own: study/<name>/table.py, made of `table`, `figure` and `files` here.

Imports results and the cost model, never a kernel.

To add a table: a module that makes rows (dicts) and renders them by `table`; files come from the same rows by
`files`.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.report.compare import comparison
    from fastmmu.report.estimates import estimate_rows, estimates
    from fastmmu.report.exit_plot import ExitHistory, plot_exits
    from fastmmu.report.exit_stat import ExitStat, exit_stat
    from fastmmu.report.exits import ExitFile, save_exits
    from fastmmu.report.explain import explain
    from fastmmu.report.files import save
    from fastmmu.report.page import page
    from fastmmu.report.rows import over_time, rows, slowdowns
    from fastmmu.report.run_plot import plot_runs
    from fastmmu.report.single import single
    from fastmmu.report.stored import load

__all__ = [
    "ExitFile",
    "ExitHistory",
    "ExitStat",
    "comparison",
    "estimate_rows",
    "estimates",
    "exit_stat",
    "explain",
    "load",
    "over_time",
    "page",
    "plot_exits",
    "plot_runs",
    "rows",
    "save",
    "save_exits",
    "single",
    "slowdowns",
]

_HOMES = {
    "fastmmu.report.compare": ("comparison",),
    "fastmmu.report.estimates": ("estimate_rows", "estimates"),
    "fastmmu.report.exit_plot": ("ExitHistory", "plot_exits"),
    "fastmmu.report.exit_stat": ("ExitStat", "exit_stat"),
    "fastmmu.report.exits": ("ExitFile", "save_exits"),
    "fastmmu.report.explain": ("explain",),
    "fastmmu.report.files": ("save",),
    "fastmmu.report.page": ("page",),
    "fastmmu.report.run_plot": ("plot_runs",),
    "fastmmu.report.rows": ("over_time", "rows", "slowdowns"),
    "fastmmu.report.single": ("single",),
    "fastmmu.report.stored": ("load",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
