"""The command line: a module a command.

    main                    parse, dispatch, every error as one line
    commands                which commands there are; each is loaded when it is used
    options, space          what commands share: traces, configuration, files; memory and registers
    experiment              the same for those of studies: each trace in turn, table, files, picture
    terminal, progress, simulation   what a terminal can do; progress and Ctrl-C; runs in a row
    run, walk, maps, trace, diff     the commands that are no study's

Imports everything but `study`, which brings commands of its own. What is not needed to list the commands and their
options, NumPy and the kernels above all, is imported where it is used.

To add a command: a module with USAGE, DESCRIPTION, EPILOG, `add` and `handle`, a row of OWN in `commands`, a test in
tests/cli. That of a study: see `study`.
"""

from __future__ import annotations

from fastmmu.cli.main import main

__all__ = ["main"]
