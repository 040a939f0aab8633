"""Configurations: what a field takes, and that what is wrong is refused when it is made, with the remedy."""

from __future__ import annotations

import copy
import pickle
import random
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
import pytest

from fastmmu import (
    Config,
    ConfigError,
    Geometry,
    Host,
    Machine,
    MissingExtraError,
    Simulation,
    TraceError,
    geometry,
    simulate,
)
from fastmmu.errors import WrongTypeError
from fastmmu.machine.replay import Replay
from fastmmu.report import rows
from fastmmu.tlb.geometry import Array
from tests.support.event_lists import program

TRACE = program(500)


def values_of(name: str, hint: Any) -> list[Any]:
    """Values that a field takes, beside its default."""
    more: dict[str, list[Any]] = {
        "memory": ["64M", "3G", 1 << 27], "host_memory": [None, "1M", 1 << 20], "identity_map": [0x1000_0000],
        "tlb": ["zen2", "strict"], "l1d": [None, "16/fa"], "l1i": [None, "64/4"], "stlb": [None, "none", "512/4"],
        "replacement": [None, "plru", "lru,random:7"], "psc": [None, "none", "2/4/32"], "epsc": [None, "pde 16/4"],
        "gpm": [None, "off", "32/4"],
        "table_pages": [0, 16], "exit_every": [0, 7], "exit_pages": [0, 3], "exit_log": [0, 100],
        "asids": [2, 16], "sev_asids": [0, 3],
        "topology": [None, "1x1x2"], "shared": [None, "none", "l2,psc"],
        "tlb_extension": [None, "none", "range:8+prefetch:distance"],
        "handler_length": [0, 5], "apic_id": [0, 15], "vmm": ["python", "kernel"], "thp_threshold": [1, 512],
        "thp": [None, "always", "madvise+khugepaged:4096/1000:255"],
        "unmovable": [0.0, 0.5], "flush_ceiling": [0, 4096], "frames": ["shuffled", "buddy:0.5:3", "reserve:64k"],
        "host_frames": ["linear"],
        "caches": [None, "skylake", "zen2 l3=8m/16"],
        "agile": [None, "writes=3 interval=100 back=all"],
    }  # fmt: skip
    if name in more:
        return more[name]
    words = [word for part in (hint, *get_args(hint)) if get_origin(part) is Literal for word in get_args(part)]
    return words or [False, True]


HINTS = {name: hint for name, hint in get_type_hints(Config).items() if not name.startswith("_")}


def test_every_field_takes_what_numpy_makes_of_its_values() -> None:
    tried = 0
    for name, hint in HINTS.items():
        for value in values_of(name, hint):
            more = {"mmu": "ept"} if name == "pml" else {"tlb": "strict"} if name == "find_missing_flushes" else {}
            more |= {"memory": "2G"} if name == "tpr" and value else {"pages": "thp"} if name == "thp" else {}
            if name == "defrag":
                more = {"pages": "thp", "thp": "always", "frames": "buddy:0"}
            own: Any = value
            if isinstance(value, bool):
                own = np.bool_(value)
            elif isinstance(value, int):
                own = np.int64(value)
            elif isinstance(value, str):
                own = np.str_(value)
            plain, numpy = Config(**{**more, name: value}), Config(**{**more, name: own})
            assert plain == numpy
            assert hash(plain) == hash(numpy)
            assert type(getattr(numpy, name)) is type(value), name
            assert msgspec.json.decode(msgspec.json.encode(numpy), type=Config) == plain
            tried += 1
    assert tried > 80


def test_a_value_that_is_none_is_refused_at_once() -> None:
    for name in HINTS:
        for bad in (object(), 1.5, np.float64(2), [1], {"a": 1}, b"x", np.arange(3), -1, 1 << 70, "no such"):
            with pytest.raises(ConfigError, match=re.escape("Config: ")) as caught:
                Config(**{name: bad})
            assert name in str(caught.value) or isinstance(bad, str), (name, bad, caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tlb": "foo"}, "TLB preset 'foo' is unknown; choose from core2"),
        ({"tlb": "skylaek"}, "did you mean skylake"),
        ({"tlb": 5}, "tlb=5: give the name of a preset, or a fastmmu.Geometry"),
        ({"l1d": "65/4"}, "l1d: 65/4: 65 entries are no multiple of 4 ways; nearest: 64/4 or 128/4"),
        ({"stlb": "64/3"}, "no multiple of 3 ways"),
        ({"l1i": "64/4 + 3m 4/4"}, "'3m 4/4' is no geometry"),
        ({"tlb": "strict", "replacement": "plru"}, "leave replacement at lru"),
        ({"l1d": "256/128", "replacement": "plru"}, "use lru, or at most 64 ways"),
        ({"find_missing_flushes": True}, 'use tlb="strict"'),
        ({"premapped": True, "host_memory": "1G"}, "premapped=True, all tables stand, and host_memory"),
        ({"vpid": 1}, "vpid=1: Expected `bool`"),
        ({"exit_every": True}, "exit_every=True: Expected `int`"),
        ({"mmu": "EPT"}, "choose from 'native', 'shadow', 'ept'"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        Config(**fields)
    with pytest.raises(ConfigError, match=re.escape(said)):
        Config().replace(**fields)


def test_what_can_be_made_can_be_run() -> None:
    """Random configurations: refused when they are made, or run."""
    chance, ran, refused = random.Random(3), 0, 0
    for _ in range(150):
        names = chance.sample(sorted(HINTS), chance.randint(1, 6))
        fields = {name: chance.choice(values_of(name, HINTS[name])) for name in names}
        try:
            config = Config(**fields)
        except ConfigError:
            refused += 1
            continue
        result = simulate(TRACE, config)
        assert result.counters["accesses"] == 500
        assert rows([result])[0]["geometry"] == result.geometry
        ran += 1
    assert ran > 100
    assert refused > 5


def test_an_unknown_field() -> None:
    with pytest.raises(TypeError, match=r"Config has no field .vpdi.; did you mean vpid\?"):
        Config().replace(vpdi=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Config has no field 'xyzzy'; see help"):
        Config().replace(xyzzy=True)  # type: ignore[call-arg]


# ---- geometries ------------------------------------------------------------------------------------------------------


def test_a_geometry_is_taken() -> None:
    own = geometry("skylake", l1d="64/4 + 2m 16/4 + 1g 8/fa", psc="4/8/64", epsc="none", gpm="128/fa")
    config = Config(mmu="ept", vpid=True, tlb=own)
    assert config.geometry == own
    assert config.tlb_name == "skylake"
    assert Machine(config).tlb.geometry == own
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), config.replace(),
                  msgspec.json.decode(msgspec.json.encode(config), type=Config)):  # fmt: skip
        assert other == config
        assert hash(other) == hash(config)
    result = simulate(TRACE, config)
    assert result.geometry == str(own)
    assert simulate(TRACE, Config(mmu="ept", vpid=True)).counters != result.counters


def test_a_geometry_is_that_of_its_preset() -> None:
    for preset in ("skylake", "zen2", "strict"):
        fields: dict[str, Any] = {"mmu": "ept", "tlb": geometry(preset), "memory": "256M"}
        assert (
            simulate(TRACE, Config(**fields)).counters == simulate(TRACE, Config(**{**fields, "tlb": preset})).counters
        )


def test_fields_for_arrays_lie_over_a_geometry() -> None:
    own = geometry("nehalem", replacement="plru")
    assert Config(tlb=own).geometry.replacement == ("plru", "plru")
    assert Config(tlb=own, replacement="lru").geometry.replacement == ("lru", "lru")
    assert Config(tlb=own).replace(l1d="16/4").geometry == geometry("nehalem", l1d="16/4", replacement="plru")
    assert Config(tlb=own, walk_caches=False).geometry.psc == ()
    assert rows([simulate(TRACE, Config(tlb=own))])[0]["replacement"] == "plru"


def test_a_geometry_made_by_hand() -> None:
    own = Geometry(name="mine", l1i=Array(np.int64(64), 4), l1d=[Array(64, 4), Array(32, 4, "2m")])  # type: ignore[arg-type]
    assert own == Geometry(name="mine", l1i=(Array(64, 4),), l1d=(Array(64, 4), Array(32, 4, ("2m",))))
    assert hash(Config(tlb=own))
    assert simulate(TRACE, Config(tlb=own)).counters["accesses"] == 500


# ---- what is no configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"mmu": "ept"}, "ept", 5, Config])
def test_what_is_no_configuration(config: Any) -> None:
    for call in (lambda: simulate(TRACE, config), lambda: Simulation(config), lambda: Replay(TRACE, config),  # type: ignore[arg-type]
                 lambda: Machine(config)):  # fmt: skip
        with pytest.raises(WrongTypeError, match=r"^config=.*give fastmmu\.Config\("):
            call()
    with pytest.raises((TypeError, ConfigError), match="Config"):
        Host([config])


def test_what_is_no_trace() -> None:
    assert simulate([]).counters["accesses"] == 0
    assert simulate(np.empty(0)).counters["accesses"] == 0
    for bad in ([1.5], [[1]], None, 5, ["a"], [1 << 64]):
        with pytest.raises(TraceError, match="a trace is what read_trace gives or a 1-D array of integers"):
            simulate(bad)
    with pytest.raises(ConfigError, match=r"pass fastmmu\.read_trace\('x\.npy'\)"):
        simulate("x.npy")


def test_a_result_is_one_line() -> None:
    result = simulate(TRACE, Config(mmu="ept", vpid=True))
    assert re.fullmatch(
        r"<Result arrays, EPT\+VPID: 500 accesses, \S+ TLB misses, \S+ VM exits; \S+ cycles/access>", repr(result)
    )
    assert pickle.loads(pickle.dumps(result)) == result == copy.deepcopy(result)


def test_errors_come_back_from_other_processes() -> None:
    for error in (MissingExtraError("a plot", "plot"), TraceError("bad", path="p", where="line 1"), ConfigError("x")):
        other = pickle.loads(pickle.dumps(error))
        assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))
