"""Extensions of a TLB as text: what is asked between a miss of both levels and the walk.

========================================  ===========================================================================
``clustered[:PAGES[:ENTRIES/WAYS]]``      entries for 2, 4 or 8 (the default) neighbours whose frames lie in one group;
                                          512/8 of them (Pham et al., HPCA 2014)
``coalesced[:PAGES[:ENTRIES/WAYS]]``      the same of frames that follow each other (CoLT, MICRO 2012)
``range[:ENTRIES]``                       entries of base, limit and offset; 32 (Redundant Memory Mappings, ISCA 2015)
``pom[:SIZE]``                            a TLB in memory; 16m (POM-TLB, ISCA 2017)
``prefetch:KIND[:ENTRIES]``               a buffer of 16 entries that a prefetcher fills: ``sequential``, ``distance``,
                                          ``stride`` (by instruction), ``markov`` (Kandiraju and Sivasubramaniam,
                                          ISCA 2002), ``recency`` (Saulsbury et al., ISCA 2000)
``skewed[:ENTRIES/WAYS]``                 an array for pages of 4K, 2M and 1G, 1536/12, whose ways have indices of their
                                          own (Seznec, IEEE TC 2004)
``rehash[:ENTRIES/WAYS[:ascending]]``     one that is read size after size, in the order that is predicted, or in
                                          that of the sizes
``mix[:ENTRIES/WAYS]``                    one index for all sizes: larger pages lie in each set, coalesced (MIX TLB: Cox
                                          and Bhattacharjee, ASPLOS 2017)
========================================  ===========================================================================

Several are joined by ``+`` and asked in their order. What each does is said in its kernel, in this room.
"""

from __future__ import annotations

import re

import msgspec

from fastmmu.errors import ConfigError
from fastmmu.sizes import parse_bytes

__all__ = ["PREFETCHERS", "Extension", "parse_extensions"]

PREFETCHERS = ("sequential", "distance", "recency", "stride", "markov")
_MIXED = {"skewed": ("",), "rehash": ("", "ascending"), "mix": ("",)}
_CHOICE = (
    "clustered:8, coalesced:8, range:32, pom:16m, skewed:1536/12, rehash:1536/12, mix:1536/12, or of prefetch:"
    f"{', prefetch:'.join(PREFETCHERS)}"
)


class Extension(msgspec.Struct, frozen=True):
    """One extension.

    :param name: "clustered", "coalesced", "range", "pom", "skewed", "rehash", "mix" or "prefetch".
    :param kind: of a prefetcher, one of :data:`PREFETCHERS`; "ascending" of a "rehash" that predicts nothing.
    :param size: pages of a cluster; bytes of a TLB in memory.
    :param entries, ways: of a set-associative array; of a range TLB or a prefetch buffer its entries.

    Threads: immutable; share it.
    """

    name: str
    kind: str = ""
    size: int = 0
    entries: int = 0
    ways: int = 1

    def __str__(self) -> str:
        """As :func:`parse_extensions` takes it."""
        if self.name in ("clustered", "coalesced"):
            return f"{self.name}:{self.size}:{self.entries}/{self.ways}"
        if self.name in _MIXED:
            return f"{self.name}:{self.entries}/{self.ways}" + f":{self.kind}" * bool(self.kind)
        if self.name == "pom":
            return f"pom:{self.size >> 10}k" if self.size & 0xFFFFF else f"pom:{self.size >> 20}m"
        return f"{self.name}:{self.kind}:{self.entries}" if self.kind else f"{self.name}:{self.entries}"

    def __post_init__(self) -> None:
        """Refuses what is impossible.

        :raises ConfigError: an unknown name or a number out of its bounds.
        """
        text = f"TLB extension {self.name!r}"
        if self.name in ("clustered", "coalesced"):
            if self.size not in (2, 4, 8):
                raise ConfigError(f"{text}: {self.size} pages an entry; give 2, 4 or 8")
            self._check_sets(text)
        elif self.name in _MIXED:
            if self.kind not in _MIXED[self.name]:
                raise ConfigError(f"{text}: {self.kind!r} is nothing that it can be; leave it out")
            self._check_sets(text)
            if self.name == "skewed" and self.ways < 3:
                raise ConfigError(f"{text}: {self.ways} ways; give 3 at least, one for each page size")
            if self.name == "mix" and self.entries // self.ways > 512:
                raise ConfigError(f"{text}: {self.entries // self.ways} sets, more than parts of 2 MB; give 512")
        elif self.name == "range":
            if not 1 <= self.entries <= 1024:
                raise ConfigError(f"{text}: {self.entries} entries; give 1 to 1024")
        elif self.name == "pom":
            if not 1 << 12 <= self.size <= 1 << 28 or self.size & (self.size - 1):
                raise ConfigError(f"{text}: {self.size} bytes; give a power of 2 from 4k to 256m")
        elif self.name == "prefetch":
            if self.kind not in PREFETCHERS:
                raise ConfigError(f"{text}: {self.kind!r}: choose from {', '.join(PREFETCHERS)}")
            if not 1 <= self.entries <= 64:
                raise ConfigError(f"{text}: {self.entries} entries; give 1 to 64")
        else:
            raise ConfigError(f"{text} is unknown; choose {_CHOICE}")

    def _check_sets(self, text: str) -> None:
        sets = self.entries // self.ways if self.ways > 0 else 0
        if not 1 <= self.ways <= 64 or sets * self.ways != self.entries or sets & (sets - 1) or sets < 1:
            raise ConfigError(f"{text}: {self.entries}/{self.ways}: give entries/ways whose sets are a power of 2")
        if self.entries > 1 << 16:
            raise ConfigError(f"{text}: {self.entries} entries; give at most 65536")


def _number(text: str, what: str) -> int:
    if not re.fullmatch("[0-9]{1,12}", text):
        raise ConfigError(f"TLB extension {what!r}: {text!r} is no number; choose {_CHOICE}")
    return int(text)


def _bytes(text: str, what: str) -> int:
    try:
        return parse_bytes(text)
    except ConfigError as error:
        raise ConfigError(f"TLB extension {what!r}: {error}") from error


def _one(text: str) -> Extension:
    name, *rest = text.strip().lower().split(":")
    if name in ("clustered", "coalesced") and len(rest) <= 2:
        entries, _, ways = (rest[1] if len(rest) > 1 else "512/8").partition("/")
        pages = _number(rest[0], text) if rest else 8
        return Extension(name, size=pages, entries=_number(entries, text), ways=_number(ways, text))
    if name == "range" and len(rest) <= 1:
        return Extension(name, entries=_number(rest[0], text) if rest else 32)
    if name == "pom" and len(rest) <= 1:
        return Extension(name, size=_bytes(rest[0], text) if rest else 16 << 20)
    if name in _MIXED and len(rest) <= 2:
        entries, _, ways = (rest[0] if rest else "1536/12").partition("/")
        kind = rest[1] if len(rest) > 1 else ""
        return Extension(name, kind=kind, entries=_number(entries, text), ways=_number(ways, text))
    if name == "prefetch" and 1 <= len(rest) <= 2:
        return Extension(name, kind=rest[0], entries=_number(rest[1], text) if len(rest) > 1 else 16)
    raise ConfigError(f"TLB extension {text!r} is unknown; choose {_CHOICE}")


def parse_extensions(text: object) -> tuple[Extension, ...]:
    """Extensions of "clustered:8+prefetch:distance", or of several texts; None or "none": none.

    :raises ConfigError: an unknown one, a number out of its bounds, or the same kind twice.
    """
    if text is None or text == "none":
        return ()
    if isinstance(text, str):
        parts: list[object] = list(text.split("+"))
    elif isinstance(text, (tuple, list)):
        parts = list(text)
    else:
        parts = [text]
    found = []
    for part in parts:
        if isinstance(part, str):
            found.append(_one(part))
        elif isinstance(part, Extension):
            found.append(part)
        else:
            raise ConfigError(f"TLB extension {part!r}: give text such as {_CHOICE}")
    names = [one.name for one in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"TLB extension {sorted(twice)[0]!r} is given twice; give it once")
    return tuple(found)
