"""The command line: a module a command.

    main                    parse, dispatch, every error as one line
    options, space          what commands share: traces, configuration, files; memory and registers
    terminal, progress, simulation   what a terminal can do; progress and Ctrl-C
    compare, run, walk, maps, trace, replay, curve, host, tpr, vpid, migrate, overcommit, boot   the commands

Imports everything; nothing imports it.

To add a command: a module with `add` and `handle`, its name in `main`, a test in tests/cli.
"""

from __future__ import annotations

from fastmmu.cli.main import main

__all__ = ["main"]
