"""Descriptions of data caches: presets, texts, what is refused and what it says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fastmmu.cache import CACHE_PRESETS, CacheDescription, CacheHierarchy, caches
from fastmmu.cache.description import Cache, Memory
from fastmmu.errors import ConfigError, StateError, WrongTypeError

COSTS = Path(__file__).parents[2] / "src/fastmmu/machine/costs.toml"


def parsed(text: str) -> CacheDescription:
    found = caches(text)
    assert found is not None
    return found


@pytest.mark.parametrize("name", CACHE_PRESETS)
def test_a_preset_is_a_hierarchy(name: str) -> None:
    d = parsed(name)
    assert d is CACHE_PRESETS[name]
    assert d.name == name
    assert sum(CacheHierarchy(d).access(np.arange(1000, dtype=np.uint64) * 64)) == 1000
    latencies = [part.latency for part in (d.l1d, d.l2, d.l3) if part]
    assert [*latencies, d.memory.row, d.memory.dram] == sorted([*latencies, d.memory.row, d.memory.dram])


def test_skylake_has_the_latencies_of_the_cost_model() -> None:
    d, memory = CACHE_PRESETS["skylake"], tomllib.loads(COSTS.read_text())["memory"]
    assert d.l2
    assert d.l3
    found = {"l1d": d.l1d.latency, "l2": d.l2.latency, "l3": d.l3.latency, "dram": d.memory.dram}
    assert found == memory


@pytest.mark.parametrize("name", CACHE_PRESETS)
@pytest.mark.parametrize("words", ["", "walker=l2 tables=l2,l3 policy=lru,plru,srrip banks=7 row=4k dram=90/120"])
def test_the_text_of_a_description_makes_it_again(name: str, words: str) -> None:
    if name == "core2":
        words = words.replace("tables=l2,l3", "tables=l2")
    d = parsed(f"{name} {words}")
    again = parsed(str(d))
    assert msgspec.structs.replace(again, name="") == msgspec.structs.replace(d, name="")


def test_words_replace_parts_of_a_preset() -> None:
    d = parsed("zen2 l1d=48k/12/5 l3=8m/16 inclusion=neither l2_inclusion=neither bypass=l1 walker=l1 tables=none")
    assert d.l1d == Cache(48 << 10, 12, 5)
    assert d.l3 == Cache(8 << 20, 16, 39)
    assert d.l2 == CACHE_PRESETS["zen2"].l2
    assert (d.inclusion, d.l2_inclusive, d.bypass, d.tables) == ("neither", False, ("l1",), ())
    assert d.name == "zen2 l1d=48k/12/5 l3=8m/16 inclusion=neither l2_inclusion=neither bypass=l1 walker=l1 tables=none"
    assert parsed("l2=512k/8").l2 == Cache(512 << 10, 8, 14)
    assert parsed("SKYLAKE l3=none").l3 is None
    assert parsed("core2 l3=4m/16").l3 == Cache(4 << 20, 16, 44)
    assert parsed("skylake l3=11264k/11").l3 == Cache(11 << 20, 11, 44)
    assert caches(None) is None
    assert caches(d) is d


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("skylaek", "did you mean skylake"),
        ("skylake l4=1m/8", "did you mean l"),
        ("skylake l2", "word=value"),
        ("skylake l2=256k/4 l2=1m/8", "twice"),
        ("l1d=33000/8", "nearest: 32k/8 or 64k/8"),
        ("l2=100/8", "nearest: 512/8 or 1k/8"),
        ("l3=10000/3", "nearest: 9984/3 or 10176/3"),
        ("l1d=24k/8", "48 sets, which is no power of two; nearest: 16k/8 or 32k/8"),
        ("l2=256k/100", "ways=100: give 1..64; nearest: 64"),
        ("l2=256k", "size/ways"),
        ("l2=big/4", "is no size"),
        ("l1d=none", "every CPU has one"),
        ("policy=lur", "did you mean lru"),
        ("policy=lru,plru", "one for L1, L2 and L3 each"),
        ("inclusion=inclusve", "did you mean inclusive"),
        ("walker=l3", "choose from l1, l2"),
        ("walker=l2 l2=none", "there is no L2"),
        ("tables=l1", "choose from l2, l3"),
        ("bypass=l3", "give bypass='l1,l2,l3'"),
        ("zen2 bypass=l2", "give bypass='l1,l2'"),
        ("zen2 l2=none", "takes what leaves L2"),
        ("dram=200", "two numbers"),
        ("banks=0", "nearest: 1"),
        ("row=5000", "nearest: 4k or 8k"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        caches(text)


def test_what_is_refused_of_structs() -> None:
    with pytest.raises(WrongTypeError):
        caches(7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no whole number"):
        Cache(4096, 2.5, 4)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nearest: 1048576"):
        Memory(banks=1 << 21)
    with pytest.raises(ConfigError, match=r"give a Cache\("):
        CacheDescription(name="x", l1d=Cache(4096, 1, 4), l1i=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="nothing to make"):
        CacheHierarchy(None)  # type: ignore[arg-type]


def test_what_is_refused_of_references() -> None:
    caches = CacheHierarchy("skylake l3=none")
    bad = np.array([0, 1 << 52, 64], np.uint64)
    with pytest.raises(StateError, match=r"hpa\[1\]=0x10000000000000"):
        caches.access(bad)
    with pytest.raises(StateError, match=r"op\[2\]=16 is no access"):
        caches.access(np.zeros(3, np.uint64), np.array([0, 3, 16], np.uint8))
    with pytest.raises(StateError, match="2 entries for 3"):
        caches.access(np.zeros(3, np.uint64), np.zeros(2, np.uint8))
    with pytest.raises(StateError, match="no walk's"):
        caches.walk([("read", 0)])
    with pytest.raises(StateError, match="at most 96"):
        caches.walk([("guest1", 0)] * 97)
    with pytest.raises(WrongTypeError):
        caches.walk([3])  # type: ignore[list-item]
    assert caches.lines() == []
    assert caches.counters()["references"] == {}
