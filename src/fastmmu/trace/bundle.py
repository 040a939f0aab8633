"""The traces that come with the package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["bundled"]

_DIRECTORY = Path(__file__).parent.parent / "traces"


def bundled() -> dict[str, Path]:
    """Name → file of each bundled trace, captured from real programs by scripts/capture_traces.sh."""
    return {path.name.split(".")[0]: path for path in sorted(_DIRECTORY.glob("*.lackey.xz"))}
