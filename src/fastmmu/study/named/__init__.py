"""Experiments of the literature, a TOML each: what was published, what is run here, and whether it comes out.

    NAME.toml ──► description ──► run: workloads × configurations (side by side, or a `Study` that is resumed),
                                       walks of tables made for it, points of the VPID study
                                    │ figures by name
                                    ▼
                                  checks: expressions ──► table: ours | published | holds

    NAME.toml    one experiment: source, workloads, configurations, checks
    description  reads one, whole, before anything runs
    expression   arithmetic and comparisons over figures
    workloads    traces: bundled ones, files, generators with a seed
    walks        page tables of any depth, and every address in them walked
    run          figures and findings
    table        rows of findings for files, a table, a picture
    command      the options

A check can fail, and says so; what is compared without being asserted has its reason in the file. Directions and counts
are asserted, never seconds (docs/experiments.md). To add an experiment: a TOML here, its section in that page.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.named.description import experiments
    from fastmmu.study.named.run import named_study

__all__ = ["experiments", "named_study"]

COMMAND, HELP, PLACE = "study", "experiments of the literature: ours, published, and whether it holds", 22

_HOMES = {
    "fastmmu.study.named.description": ("experiments",),
    "fastmmu.study.named.run": ("named_study",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
