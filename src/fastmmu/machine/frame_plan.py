"""Which frames the guest kernel gives to programs, as text: a policy and how fragmented memory is at first."""

from __future__ import annotations

import csv
import re
from typing import NamedTuple

from fastmmu._arguments import shown
from fastmmu.errors import ConfigError
from fastmmu.machine.wholly import read_whole
from fastmmu.sizes import parse_bytes

__all__ = ["MOST_MEMORY", "POLICIES", "FramePlan", "frame_plan", "recorded_runs"]

POLICIES = ("first-touch", "shuffled", "buddy", "reserve", "contiguous", "of")
"""In the order of FramePolicy of machine/frames.pxd."""
MOST_MEMORY = 1 << 40
"""Guest memory that a policy other than first touch takes, in bytes."""
SAID = (
    "'first-touch', 'shuffled', 'shuffled:SEED', 'buddy:F', 'buddy:F:SEED', 'reserve:SIZE' or 'contiguous', these "
    "two also with '+buddy:F', as in 'reserve:64k+buddy:0.5', or 'of:FILE' with a file that fastmmu maps --csv wrote"
)


class FramePlan(NamedTuple):
    """policy: one of `POLICIES`. unusable: FMFI at order 9 before the run, 0 to 1; -1: free blocks are in order.
    seed: of every random choice. group: log2 of the pages of a reservation. path: of the pages of a recorded guest."""

    policy: str
    unusable: float = -1.0
    seed: int = 0
    group: int = 0
    path: str = ""

    @property
    def number(self) -> int:
        """FramePolicy of machine/frames.pxd."""
        return POLICIES.index(self.policy)


def frame_plan(text: object) -> FramePlan:
    """The plan that ``Config(frames=)`` names (docs/frames.md).

    :raises ConfigError: it names none.
    """
    if not isinstance(text, str):
        raise ConfigError(f"frames={shown(text)}: choose from {SAID}")
    policy, colon, size = text.partition("+")[0].partition(":")
    base = text.partition("+")[2] if "+" in text else None
    if text.startswith("of:") and len(text) > 3 and "\0" not in text:
        return FramePlan("of", path=text[3:])
    if text == "first-touch":
        return FramePlan(text)
    if policy == "shuffled" and base is None:
        return FramePlan(policy, 0.0, _seed(text, size if colon else "0"))
    if policy == "buddy" and base is None:
        return FramePlan(policy, *_buddy(text, text))
    if policy == "reserve" or (policy == "contiguous" and not colon):
        unusable, seed = (-1.0, 0) if base is None else _buddy(text, base)
        group = _group(text, size if colon else "64k") if policy == "reserve" else 0
        return FramePlan(policy, unusable, seed, group)
    raise ConfigError(f"frames={shown(text)}: choose from {SAID}")


def _seed(text: str, digits: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", digits) or int(digits) >= 1 << 63:
        raise ConfigError(f"frames={shown(text)}: a seed is a whole number below 2**63, as in shuffled:7")
    return int(digits)


def _buddy(text: str, base: str) -> tuple[float, int]:
    word, _, rest = base.partition(":")
    share, colon, seed = rest.partition(":")
    try:
        unusable = float(share)
    except ValueError:
        unusable = -1.0
    if word != "buddy" or not 0 <= unusable <= 1:
        raise ConfigError(f"frames={shown(text)}: fragmentation is buddy:F with F from 0 to 1, as in buddy:0.6")
    return unusable + 0.0, _seed(text, seed if colon else "0")


def _group(text: str, size: str) -> int:
    nbytes = parse_bytes(size)
    if nbytes & (nbytes - 1) or not 1 << 15 <= nbytes <= 1 << 21:
        raise ConfigError(f"frames={shown(text)}: a reservation is a power of two from 32k to 2m, as in reserve:64k")
    return nbytes.bit_length() - 13


def recorded_runs(path: str) -> list[tuple[int, int]]:
    """Runs of pages of a recorded guest that follow each other in linear and physical addresses, in the order of linear
    addresses: (pages of 4 KB, first frame).

    :param path: of a file that ``fastmmu maps GUEST --csv FILE`` wrote: columns va, gpa, size.
    :raises ConfigError: it cannot be read, is no such file, or has no page.
    """
    try:
        table = csv.DictReader(read_whole(path).decode().splitlines())
        if not {"va", "gpa", "size"} <= set(table.fieldnames or ()):
            raise ValueError("it has no columns va, gpa and size")
        rows = sorted((int(row["va"], 0), int(row["gpa"], 0), int(row["size"])) for row in table)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ConfigError(f"frames={'of:' + path!r}: {error}; give a file of fastmmu maps GUEST --csv FILE") from error
    found, end = list[tuple[int, int]](), (-1, -1)
    for va, gpa, size in rows:
        if (va | gpa | size) & 0xFFF or not 0 < size <= 1 << 30 or not 0 <= gpa < 1 << 52:
            raise ConfigError(f"frames={'of:' + path!r}: a page of {size} bytes at {va:#x}, {gpa:#x} is none")
        if (va, gpa) == end:
            found[-1] = found[-1][0] + (size >> 12), found[-1][1]
        else:
            found.append((size >> 12, gpa >> 12))
        end = va + size, gpa + size
    if not found:
        raise ConfigError(f"frames={'of:' + path!r}: the file has no page")
    return found
