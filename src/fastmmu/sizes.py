"""Sizes as people write them: 64G, 4k, 2M, 2 MiB, in any case of letters; k, m, g, t are powers of 1024.

The one parser for them. Numbers of things (`--limit 50k`) are no sizes; their units are decimal.
"""

from __future__ import annotations

import re
from operator import index
from typing import SupportsIndex

from fastmmu.errors import ConfigError

__all__ = ["PAGE_SIZES", "page_size", "parse_bytes"]

_SIZE = re.compile(r"([0-9][0-9_]{0,30})\s*(?:([kmgt])(?:i?b)?|b)?")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

PAGE_SIZES = {"4k": 1 << 12, "2m": 1 << 21, "4m": 1 << 22, "1g": 1 << 30}
"""Name of a page size → bytes."""


def parse_bytes(size: SupportsIndex | str) -> int:
    """Bytes from a number of them or a text such as ``"64G"``.

    :raises ConfigError: anything else.
    """
    if hasattr(size, "__index__") and not isinstance(size, bool) and index(size) >= 0:
        return index(size)
    match = _SIZE.fullmatch(size.strip().lower()) if isinstance(size, str) else None
    if match is None:
        raise ConfigError(
            f"{size!r} is no size; write bytes, or a whole number with k, m, g or t (in any case of letters, powers of "
            "1024), as in 64G"
        )
    return int(match[1].replace("_", "")) * _UNITS[match[2] or ""]


def page_size(size: str) -> str:
    """The name of a page size, "4k", "2m", "4m" or "1g", however it is written: "4K", "2 MB", "2048k", "4096".

    A word that is none, as "thp", comes back in small letters.
    """
    word = size.strip().lower()
    try:
        found = parse_bytes(word)
    except ConfigError:
        return word
    return next((name for name, number in PAGE_SIZES.items() if number == found), word)
