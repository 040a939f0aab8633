"""A system trace replayed, in one scheme or in all of them."""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmmu.study.replay.run import SCHEMES, Ran, replay_schemes

__all__ = ["SCHEMES", "Ran", "replay_schemes"]

COMMAND, HELP, PLACE = "replay", "a system trace, with every physical address compared", 4

_HOMES = {"fastmmu.study.replay.run": __all__}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
