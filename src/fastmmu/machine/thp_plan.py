"""Which pages of a program the guest kernel makes huge, as text."""

from __future__ import annotations

import re
from typing import NamedTuple

from fastmmu._arguments import shown
from fastmmu.errors import ConfigError

__all__ = ["MODES", "ThpPlan", "thp_plan"]

MODES = ("never", "madvise", "always")
"""In the order of ThpMode of machine/kernel_state.pxd."""
MOST = 1 << 40
SAID = (
    "'always', 'madvise' or 'never', the first two also with '+khugepaged:PAGES/ACCESSES' or "
    "'+khugepaged:PAGES/ACCESSES:NONE', as in 'always+khugepaged:4096/1000000:511'"
)


class ThpPlan(NamedTuple):
    """mode: of `MODES`. pages: that khugepaged looks at, after each `every` accesses of the trace; 0: there is none.
    none: of 512 pages that it makes one so many need not be there (max_ptes_none)."""

    mode: str
    pages: int = 0
    every: int = 0
    none: int = 511

    @property
    def number(self) -> int:
        """ThpMode of machine/kernel_state.pxd."""
        return MODES.index(self.mode)


def thp_plan(text: object) -> ThpPlan:
    """The plan that ``Config(thp=)`` names (docs/frames.md).

    :raises ConfigError: it names none.
    """
    mode, plus, scan = text.partition("+") if isinstance(text, str) else ("", "", "")
    if mode not in MODES or (plus and mode == "never"):
        raise ConfigError(f"thp={shown(text)}: choose from {SAID}")
    if not plus:
        return ThpPlan(mode)
    found = re.fullmatch(r"khugepaged:([0-9]{1,13})/([0-9]{1,13})(?::([0-9]{1,3}))?", scan)
    if found is None or not (0 < int(found[1]) <= MOST and 0 < int(found[2]) <= MOST and int(found[3] or 0) < 512):
        raise ConfigError(
            f"thp={shown(text)}: khugepaged looks at 1 or more pages after each 1 or more accesses, and of 512 at most "
            "511 need not be there, as in 'always+khugepaged:4096/1000000:511'"
        )
    return ThpPlan(mode, int(found[1]), int(found[2]), 511 if found[3] is None else int(found[3]))
