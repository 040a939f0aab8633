"""Other packages that look at memory: fastmmu in the place of what they do themselves, an extra each.

    volatility   volatility3's 64-bit Intel layers enumerate by fastmmu
    drgn         memory and address spaces as those of a drgn program

Imports `space` and what is below it; the other package where it is used, so that each module is imported without.

To add one: a module, its extra in pyproject.toml, and a test beside the package itself, skipped where it is absent.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False

__all__: list[str] = []

_HOMES: dict[str, tuple[str, ...]] = {}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
