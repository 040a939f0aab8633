"""Data caches as text: presets with parts replaced.

``caches("skylake l2=512k/8 walker=l2")``: a preset's name, if any, then words. Without a name they change "skylake".

===================  ================================================================================================
word                 puts in place
===================  ================================================================================================
l1d, l1i, l2, l3     size/ways, as 32k/8, or size/ways/latency; l2=none, l3=none: there is none
policy               lru, plru or srrip of all caches, or of L1, L2, L3 each, as lru,plru,srrip
inclusion            of L3: inclusive, exclusive (it takes what leaves L2), neither
l2_inclusion         of L2: inclusive, neither
dram                 latency in the open row / in another, as 150/200
banks, row           banks of memory; bytes of a row, as 8k
walker               l1, l2: where walks look first
tables               l2, l3, as l2,l3: where lines of table entries are preferred; none
bypass               l1, l2, l3, as l1,l2: what the references of walks do not fill; none
===================  ================================================================================================

Presets are in :mod:`fastmmu.cache.presets`, with their sources.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import msgspec

from fastmmu._arguments import shown
from fastmmu._checked import checked_but
from fastmmu.cache.description import MAX_WAYS, POLICIES, Cache, CacheDescription, choose, near_sizes
from fastmmu.cache.presets import CACHE_PRESETS
from fastmmu.errors import ConfigError, WrongTypeError
from fastmmu.sizes import parse_bytes

__all__ = ["caches"]


def _cache(text: str, what: str, old: Cache | None, latency: int) -> Cache | None:
    if text == "none":
        if what in ("l1d", "l1i"):
            raise ConfigError(f"{what}=none: every CPU has one; write size/ways, as in 32k/8")
        return None
    match = re.fullmatch(r"([^/]+)/(\d{1,9})(?:/(\d{1,9}))?", text)
    if not match:
        raise ConfigError(f"{what}={text!r} is no cache; write size/ways, as in 32k/8, or size/ways/latency")
    try:
        size = parse_bytes(match[1])
    except ConfigError as error:
        raise ConfigError(f"{what}={text!r}: {error}") from error
    cycles = int(match[3]) if match[3] else old.latency if old else latency
    ways = int(match[2])
    if what != "l3" and 1 <= ways <= MAX_WAYS and size % (64 * ways):
        raise ConfigError(f"{what}={text}: its lines are no multiple of its ways; nearest: {near_sizes(size, ways)}")
    try:
        return Cache(size, ways, cycles, old.policy if old else "lru")
    except ConfigError as error:
        raise ConfigError(f"{what}={text}: {error}") from error


def _numbers(text: str, what: str, example: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not match:
        raise ConfigError(f"{what}={text!r}: write two numbers of cycles, as in {example}")
    return int(match[1]), int(match[2])


_WORDS = (
    "l1d", "l1i", "l2", "l3", "policy", "inclusion", "l2_inclusion", "dram", "banks", "row", "walker", "tables",
    "bypass",
)  # fmt: skip
_LATENCIES = {"l1d": 4, "l1i": 4, "l2": 14, "l3": 44}


def _replaced(found: CacheDescription, words: dict[str, str]) -> CacheDescription:
    changes: dict[str, Any] = {}
    for level, latency in _LATENCIES.items():
        if level in words:
            changes[level] = _cache(words[level], level, getattr(found, level), latency)
    if "policy" in words:
        each = words["policy"].split(",")
        if len(each) not in (1, 3):
            raise ConfigError(f"policy={words['policy']!r}: give one, or one for L1, L2 and L3 each, as lru,plru,srrip")
        first, second, third = each * 3 if len(each) == 1 else each
        for level, policy in {"l1d": first, "l1i": first, "l2": second, "l3": third}.items():
            choose(policy, "policy", POLICIES)
            part = changes.get(level, getattr(found, level))
            changes[level] = part and msgspec.structs.replace(part, policy=policy)
    if "l2_inclusion" in words:
        changes["l2_inclusive"] = choose(words["l2_inclusion"], "l2_inclusion", ("inclusive", "neither")) == "inclusive"
    memory: dict[str, int] = {}
    if "dram" in words:
        memory["row"], memory["dram"] = _numbers(words["dram"], "dram", "150/200")
    if "banks" in words:
        memory["banks"] = parse_bytes(words["banks"])
    if "row" in words:
        memory["row_bytes"] = parse_bytes(words["row"])
    changes["memory"] = msgspec.structs.replace(found.memory, **memory)
    changes |= {word: words[word] for word in ("inclusion", "walker", "tables", "bypass") if word in words}
    return msgspec.structs.replace(found, name=" ".join([found.name, *map("=".join, words.items())]), **changes)


@checked_but("description")
def caches(description: str | CacheDescription | None = "skylake") -> CacheDescription | None:
    """The description of data caches from a preset's name, a text as in the head of this module, or itself.

    :param description: None stays None: no caches.
    :raises ConfigError: an unknown preset or word, an impossible cache; it names the nearest that is possible.
    """
    if description is None or isinstance(description, CacheDescription):
        return description
    if not isinstance(description, str):
        raise WrongTypeError(f"caches={shown(description)}: give a preset's name, a text or a CacheDescription")
    listed = description.lower().split()
    name = listed.pop(0) if listed and "=" not in listed[0] else "skylake"
    if name not in CACHE_PRESETS:
        near = difflib.get_close_matches(name, CACHE_PRESETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"caches: preset {name!r} is unknown; {hint}choose from {', '.join(CACHE_PRESETS)}")
    words: dict[str, str] = {}
    for item in listed:
        word, equals, value = item.partition("=")
        if not equals or word not in _WORDS:
            near = difflib.get_close_matches(word, _WORDS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}=? " if near else ""
            raise ConfigError(f"caches: {item!r} is no part; {hint}write word=value of {', '.join(_WORDS)}")
        if word in words:
            raise ConfigError(f"caches: {word} is given twice, as {words[word]} and {value}; give it once")
        words[word] = value
    return _replaced(CACHE_PRESETS[name], words) if words else CACHE_PRESETS[name]
