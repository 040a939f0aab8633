"""Pictures in files, by matplotlib."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastmmu.errors import ConfigError, MissingExtraError
from fastmmu.report.files import check_target, write_whole

__all__ = ["PICTURES", "check_picture", "picture"]

PICTURES = ("png", "svg", "pdf")


def check_picture(path: str | os.PathLike[str]) -> str:
    """Find out before a long run that a picture cannot be written; its format.

    :raises ConfigError: the suffix is none of png, svg, pdf. :raises OSError: what writing it would raise.
    :raises MissingExtraError: matplotlib is not installed.
    """
    format = Path(path).suffix.removeprefix(".").lower()
    if format not in PICTURES:
        raise ConfigError(f"--plot {path}: a picture is one of {', '.join(PICTURES)}; name the file so")
    check_target(path, format)
    _figure_class()
    return format


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("a picture", "plot") from error
    return Figure


@contextmanager
def picture(path: str | os.PathLike[str], size: tuple[float, float]) -> Iterator[Any]:
    """A matplotlib figure of so many inches, which is written to the file when the block is left.

    :raises ConfigError, OSError, MissingExtraError: as :func:`check_picture`.
    """
    format = check_picture(path)
    figure = _figure_class()(figsize=size, layout="constrained")
    yield figure
    sink = io.BytesIO()
    figure.savefig(sink, format=format)
    write_whole(path, sink.getvalue())
