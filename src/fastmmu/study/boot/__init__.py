"""A guest that changes its paging mode, step by step."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.boot.run import BOOT, SCHEMES, Boot, Done, Instruction, Step, boot, broken, execute

__all__ = ["BOOT", "SCHEMES", "Boot", "Done", "Instruction", "Step", "boot", "broken", "execute"]

COMMAND, HELP, PLACE = "boot", "a guest that changes its paging mode, step by step", 7

_HOMES = {"fastmmu.study.boot.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
