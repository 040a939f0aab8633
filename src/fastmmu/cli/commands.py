"""Which commands there are: those of this room, and one for each study that has any, found by its folder.

A command is a module with USAGE (what follows its name), DESCRIPTION, EPILOG, `add(parser)` and `handle(options)`.
What the list of commands says of it is known without that module: from OWN, or from COMMAND, HELP and PLACE (in the
list) of the study's `__init__`, which imports nothing.
"""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

__all__ = ["Command", "commands"]

STUDIES = "fastmmu.study"


class Command(NamedTuple):
    """A command that can be listed, and loaded."""

    place: int
    name: str
    help: str
    module: str

    def add(self, commands: Any, *, whole: bool) -> None:
        """Add it to the parser of the command line; `whole`: with its options, which takes loading it."""
        if not whole:
            commands.add_parser(self.name, help=self.help)
            return
        module = import_module(self.module)
        parser: argparse.ArgumentParser = commands.add_parser(
            self.name,
            help=self.help,
            usage=f"fastmmu {self.name} {module.USAGE}",
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(handler=module.handle, parser=parser)
        module.add(parser)


OWN = (
    Command(0, "record", "a program of yours under Valgrind, as a trace", "fastmmu.cli.record"),
    Command(2, "run", "one scheme, with all its counters", "fastmmu.cli.run"),
    Command(11, "walk", "one address, its page walk drawn step by step", "fastmmu.cli.walk"),
    Command(12, "maps", "every mapping of an address space", "fastmmu.cli.maps"),
    Command(15, "roots", "where in memory page tables begin: candidates for CR3", "fastmmu.cli.roots"),
    Command(14, "diff", "two files of results, or what two address spaces map", "fastmmu.cli.diff"),
    Command(18, "report", "results as a page: tables, pictures, why", "fastmmu.cli.report"),
    Command(13, "trace", "what a trace holds, and conversion", "fastmmu.cli.trace"),
)


def commands() -> list[Command]:
    """All of them, as they are listed."""
    return sorted([*OWN, *_of_studies()])


def _of_studies() -> Iterator[Command]:
    for found in pkgutil.iter_modules(import_module(STUDIES).__path__):
        if found.ispkg:
            study = import_module(f"{STUDIES}.{found.name}")
            yield Command(study.PLACE, study.COMMAND, study.HELP, f"{study.__name__}.command")
