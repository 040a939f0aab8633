"""The command line: a module a command.

    main                    parse, dispatch, every error as one line; the command line as a program, or as a function
    interruption            signals: what is finished is printed and written, and the program ends
    commands                which commands there are; each is loaded when it is used
    vmm                     --vmm, --kvm: who handles VM exits, and by which KVM
    frames                  --frames: which frames of guest memory programs get
    contiguity              run --contiguity: runs of programs' pages
    options, caches, space  what commands share: traces, configuration, files; data caches; memory and registers
    settings                --config, --save-config: the options of a run in a file
    checkpoint              --checkpoint: where runs keep how far they came
    experiment              the same for those of studies: each trace in turn, table, files, picture
    terminal, progress, simulation   the standard streams; progress, and steps until a signal; runs in a row
    region                  what is counted of a run: --warm-up, --interval, --sample-every, --roi
    exit_log                where the VM exits of runs go: --exits, --plot
    record, run, walk, maps, roots, trace, diff, report   the commands that are no study's

Imports everything but `study`, which brings commands of its own. What is not needed to list the commands and their
options, NumPy and the kernels above all, is imported where it is used.

To add a command: a module with USAGE, DESCRIPTION, EPILOG, `add` and `handle`, a row of OWN in `commands`, a test in
tests/cli, and a row of COMMANDS in tests/cli/test_signals.py. What takes long goes step by step through
`progress.UntilInterrupted`; what is printed, through `terminal.say`. That of a study: see `study`.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.cli.main import main

__all__ = ["main"]

_HOMES = {"fastmmu.cli.main": ("main",)}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
