"""Presets are those of tlb.md §9; what cannot be built is refused with a remedy that works."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmmu import Config, ConfigError, simulate
from fastmmu.tlb.geometry import PRESETS, Array, Geometry, geometry, parse_array
from fastmmu.tlb.tlb import TLB
from tests.support.event_lists import program

# tlb.md §9, column by column: unit, page size -> "entries/ways"
TABLE = {
    "core2": {
        "l1i 4k": "128/4", "l1i 2m": "8/fa", "l1d 4k": "16/4", "l1d 2m": "16/4", "l2 4k": "256/4", "l2 2m": "32/4",
    },
    "nehalem": {"l1i 4k": "128/4", "l1i 2m": "7/fa", "l1d 4k": "64/4", "l1d 2m": "32/4", "l2 4k": "512/4"},
    "sandybridge": {
        "l1i 4k": "128/4", "l1i 2m": "8/fa", "l1d 4k": "64/4", "l1d 2m": "32/4", "l1d 1g": "4/fa", "l2 4k": "512/4",
    },
    "haswell": {
        "l1i 4k": "128/4", "l1i 2m": "8/fa", "l1d 4k": "64/4", "l1d 2m": "32/4", "l1d 1g": "4/fa",
        "l2 4k": "1024/8", "l2 2m": "1024/8",
    },
    "broadwell": {
        "l1i 4k": "128/4", "l1i 2m": "8/fa", "l1d 4k": "64/4", "l1d 2m": "32/4", "l1d 1g": "4/fa",
        "l2 4k": "1536/6", "l2 2m": "1536/6", "l2 1g": "16/4",
    },
    "skylake": {
        "l1i 4k": "128/8", "l1i 2m": "8/fa", "l1d 4k": "64/4", "l1d 2m": "32/4", "l1d 1g": "4/fa",
        "l2 4k": "1536/12", "l2 2m": "1536/12", "l2 1g": "16/4",
    },
    "icelake": {
        "l1i 4k": "128/8", "l1i 2m": "16/fa", "l1d 4k": "64/4", "l1d 2m": "32/4", "l1d 1g": "8/fa",
        "l1s 4k": "16/fa", "l1s 2m": "16/fa", "l1s 1g": "16/fa",
        "l2 4k": "2048/16", "l2 2m": "2048/16", "l2 1g": "2048/16",
    },
}  # fmt: skip
for _name, _l1d, _l2 in (
    ("zen1", "64/fa", "1536/12"),
    ("zen2", "64/fa", "2048/16"),
    ("zen3", "64/fa", "2048/16"),
    ("zen4", "72/fa", "3072/24"),
):
    TABLE[_name] = {f"{unit} {size}": n for unit, n in (("l1i", "64/fa"), ("l1d", _l1d)) for size in ("4k", "2m", "1g")}
    TABLE[_name] |= {f"{unit} {size}": n for unit, n in (("l2", _l2), ("l2i", "512/8")) for size in ("4k", "2m")}
TABLE["strict"] = {f"{unit} {size}": "1024/16" for unit in ("l1i", "l1d", "l2") for size in ("4k", "2m", "1g")}  # grows


def arrays(g: Geometry) -> dict[str, str]:
    units = {"l1i": g.l1i, "l1d": g.l1d, "l1s": g.l1s, "l2": g.l2, "l2i": g.l2i}
    return {f"{unit} {size}": str(array) for unit, held in units.items() for array in held for size in array.sizes}


@pytest.mark.parametrize("name", sorted(PRESETS.keys() | TABLE.keys()))
def test_presets_are_the_tables(name: str) -> None:
    assert arrays(PRESETS[name]) == TABLE[name]


def test_what_presets_share_and_limit() -> None:
    for name in ("zen1", "zen4"):
        assert len(PRESETS[name].l1d) == 1  # one array for all sizes
        assert PRESETS[name].smash
    assert len(PRESETS["skylake"].l2) == 2
    assert PRESETS["icelake"].l2[0].quota == (16, 8, 8)
    assert not PRESETS["core2"].l2_fetches
    psc = {array.sizes[0]: array.entries for array in PRESETS["core2"].psc}
    assert psc == {"pdpte": 4, "pde": 16}
    assert {array.sizes[0]: array.entries for array in PRESETS["skylake"].psc} == {"pml4e": 2, "pdpte": 4, "pde": 32}


@pytest.mark.parametrize(
    ("text", "entries", "ways"),
    [("64/4", 64, 4), (" 1536 / 12 ", 1536, 12), ("128/fa", 128, 128), ("8 fa", 8, 8), ("8fa", 8, 8), ("64,4", 64, 4),
     ("32/1", 32, 1), ("7/7", 7, 7), ("64/4-way", 64, 4)],
)  # fmt: skip
def test_notation(text: str, entries: int, ways: int) -> None:
    assert parse_array(text) == Array(entries, ways)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-64/4", "-64/4 has no entries"),
        ("64/-4", "64/-4 has no entries"),
        ("0/4", "0/4 has no entries"),
        ("64/0", "64/0 has no entries"),
        ("65/4", "65 entries are no multiple of 4 ways; nearest: 64/4 or 128/4"),
        ("60/4", "15 sets, which is no power of two; nearest: 32/4 or 64/4"),
        ("3/4", "3 entries are no multiple of 4 ways; nearest: 4/4"),
        ("64", "'64' is no geometry; write entries/ways"),
        ("", "'' is no geometry"),
        ("a/b", "'a/b' is no geometry"),
        ("64/4/2", "'64/4/2' is no geometry"),
        ("1e3/4", "'1e3/4' is no geometry"),
        ("9999999/3", "9999999 entries are more than 4194304"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        geometry("skylake", l1d=text)
    assert str(error.value).startswith("l1d: ")
    assert says in str(error.value)


@given(st.integers(1, 5000), st.integers(1, 100))
def test_the_remedy_named_works(entries: int, ways: int) -> None:
    try:
        array = parse_array(f"{entries}/{ways}")
    except ConfigError as error:
        near = re.findall(r"\d+/\d+", str(error).split("nearest: ")[1])
        assert near
        for text in near:
            assert parse_array(text).ways == ways
    else:
        assert array.sets * ways == entries
        assert array.sets & (array.sets - 1) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preset": "skylke"}, "did you mean skylake?"),
        ({"preset": "?"}, "choose from core2, nehalem"),
        ({"replacement": "fifo"}, "'fifo': choose lru, plru, random, srrip or chirp"),
        ({"replacement": "lru,plru,lru"}, "choose lru, plru, random, srrip or chirp"),
        ({"preset": "zen4", "replacement": "plru"}, "plru of 72 ways; use lru, or at most 64 ways"),
    ],
)
def test_options_that_are_refused(options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        geometry(**options)  # type: ignore[arg-type]


def test_shapes_that_no_processor_has() -> None:
    base = PRESETS["skylake"]
    small = Array(4, 4)
    for changes, says in (
        ({"l1d": ()}, "first level without arrays"),
        ({"l1d": (Array(4, 4, ("2m",)),)}, "must hold 4k"),
        ({"l1d": (small, small)}, "same page size"),
        ({"l2": (Array(4, 4, ("8k",)),)}, "'8k'"),
        ({"psc": (small,)}, "'4k'"),
        ({"l2": (Array(6, 2),)}, "3 sets"),
        ({"l2": (Array(8, 4, ("4k", "2m"), (4, 5)),)}, "quota"),
    ):
        with pytest.raises(ConfigError, match=says):
            msgspec.structs.replace(base, **changes)


def test_parts_of_a_preset_are_replaced() -> None:
    g = geometry("zen1", l1d="32/4", l1i="16/fa", stlb="256/4", replacement=("lru", "plru"))
    assert arrays(g) == TABLE["zen1"] | {
        **{f"l1d {size}": "32/4" for size in ("4k", "2m", "1g")},
        **{f"l1i {size}": "16/fa" for size in ("4k", "2m", "1g")},
        **{f"l2 {size}": "256/4" for size in ("4k", "2m")},
    }
    assert g.replacement == ("lru", "plru")
    assert geometry(g) is g
    assert geometry("core2", stlb="512/4").l2[0].entries == 512
    bare = geometry("skylake", stlb="none")
    assert (bare.l2, bare.gpm) == ((), PRESETS["skylake"].gpm)
    shared = msgspec.structs.replace(PRESETS["skylake"], gpm="shared")
    assert geometry(shared, stlb="none").gpm == "off"
    without = geometry("zen2", walk_caches=False)
    assert (without.psc, without.epsc, without.gpm) == ((), (), "off")


@pytest.mark.parametrize("policy", ["lru", "plru", "random", "srrip", "chirp"])
@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"zen4", "strict"}))
def test_a_unit_holds_as_many_pages_as_it_has_entries(name: str, policy: str) -> None:
    tlb = TLB(geometry(name, replacement=policy))
    pages = range(3000)
    for page in pages:
        for access in ("r", "w", "x"):
            if not tlb.lookup(page << 12, access)[0]:
                tlb.fill(page << 12, TLB.value(page << 12), access)
    live, shape = tlb.live(), tlb.geometry
    for unit in ("l1i", "l1d", "l1s", "l2i", "l2"):
        assert live[unit] == sum(array.entries for array in getattr(shape, unit) if "4k" in array.sizes)


def test_large_pages_where_a_unit_has_no_room_for_them() -> None:
    """In pieces in a first level, and in zen's second; not at all in nehalem's second."""
    whole, la = TLB.value(0x40_0000_0000, "1g"), 0x7F_C123_4567
    for name, first, second in (
        ("nehalem", "2m", []),
        ("haswell", "1g", []),
        ("skylake", "1g", ["1g"]),
        ("zen1", "1g", ["2m"]),
    ):
        tlb = TLB(name)
        tlb.fill(la, whole)
        held = {unit: [entry[6] for entry in tlb.entries() if entry[0] == unit] for unit in ("l1d", "l2")}
        assert held == {"l1d": [first], "l2": second}
        level, value = tlb.lookup(la)
        size = {"2m": 21, "1g": 30}[first]
        assert level == 1
        assert value & 0x000F_FFFF_FFFF_F000 == 0x40_0123_4000 >> size << size


def test_ways_that_a_page_size_may_not_have() -> None:
    """icelake: eight ways of a set for 2M pages, the other eight stay with 4K pages."""
    tlb = TLB("icelake")
    for i in range(16):
        tlb.fill(i << 19, TLB.value(i << 19))  # sixteen 4K pages of set 0
    for i in range(20):
        tlb.fill(1 << 40 | i << 28, TLB.value(i << 28, "2m"))  # twenty 2M pages of it
    sizes = [entry[6] for entry in tlb.entries() if entry[0] == "l2"]
    assert (sizes.count("2m"), sizes.count("4k")) == (8, 8)


def test_stores_have_their_own_first_level_where_the_preset_has_one() -> None:
    for name, level in (("icelake", 2), ("skylake", 1)):
        tlb = TLB(name)
        tlb.fill(0x5000, TLB.value(0x5000), "r")
        assert tlb.lookup(0x5000, "w")[0] == level


# ---- arrays by page size, walk caches, guest-physical mappings -------------------------------------------------------


def test_arrays_by_page_size() -> None:
    g = geometry("skylake", l1d="32/4 + 2m 16/4 + 1G 8/fa", l1i="2m 16/fa", stlb="1024/8 + 1g none")
    assert g.l1d == (Array(32, 4), Array(16, 4, ("2m",)), Array(8, 8, ("1g",)))
    assert g.l1i == (Array(128, 8), Array(16, 16, ("2m",)))
    assert g.l2 == (Array(1024, 8, ("4k", "2m")),)
    zen = geometry("zen2", l1d="2m 32/4")
    assert zen.l1d == (Array(64, 64, ("4k", "1g")), Array(32, 4, ("2m",)))
    icelake = geometry("icelake", stlb="2m 512/8")
    assert icelake.l2 == (Array(2048, 16, ("4k", "1g"), (16, 8)), Array(512, 8, ("2m",)))
    for text in ("64/4 + 3m 4/4", "2m", "64/4 +", "1g 5/4", "+", "2m 32/4 32/4"):
        with pytest.raises(ConfigError, match="l1d"):
            geometry("skylake", l1d=text)
    with pytest.raises(ConfigError, match="a first level must hold 4k pages"):
        geometry("skylake", l1d="4k none")


def test_walk_caches_and_guest_physical_mappings_by_size() -> None:
    g = geometry("skylake", psc="4/8/64", epsc="128/4", gpm="32/4")
    assert [(array.entries, array.sizes) for array in g.psc] == [(4, ("pml4e",)), (8, ("pdpte",)), (64, ("pde",))]
    assert g.epsc == (Array(128, 4, ("pde", "pdpte", "pml4e", "pml5e")),)
    assert g.gpm == Array(32, 4, ("4k", "2m", "1g"))
    none = msgspec.structs.replace(geometry("skylake"), psc=(), gpm="off")
    assert geometry("skylake", psc="none", gpm="off") == none
    assert geometry("skylake", gpm="shared").gpm == "shared"
    assert geometry("skylake", psc="0/4/16").psc == geometry("core2").psc
    five = geometry("skylake", psc="1/2/4/32").psc
    assert [(array.entries, array.sizes) for array in five] == [
        (1, ("pml5e",)), (2, ("pml4e",)), (4, ("pdpte",)), (32, ("pde",))
    ]  # fmt: skip
    assert geometry("skylake", psc="pde 64/4").psc == (*geometry("skylake").psc[:2], Array(64, 4, ("pde",)))
    assert geometry("zen2", epsc="pml4e none").epsc == (Array(64, 64, ("pde", "pdpte", "pml5e")),)
    assert geometry("zen2", walk_caches=False, psc="pde 8/fa").psc == (Array(8, 8, ("pde",)),)
    for name, text, said in (
        ("psc", "x", "or PML4E/PDPTE/PDE entries, as in 2/4/32"),
        ("epsc", "5/4", "no multiple"),
        ("gpm", "most", "'most' is no geometry"),
        ("psc", "1/2/3/4/5", "is no geometry"),
        ("psc", "pde 64/5 + pdpte none", "psc pde: 64/5"),
        ("epsc", "4k 64/4", "is no geometry"),
    ):
        with pytest.raises(ConfigError, match=said):
            geometry("skylake", **{name: text})
    with pytest.raises(ConfigError, match="lives in a second level, and there is none"):
        geometry("skylake", stlb="none", gpm="shared")


def test_larger_walk_caches_save_references() -> None:
    """A guest-physical cache of every size, and none: fewer references with each step."""
    trace, refs = program(3000, pages=2000), []
    for gpm in ("off", "4/fa", "64/fa", "1024/fa"):
        result = simulate(trace, Config(mmu="ept", vpid=True, tlb=geometry("skylake", gpm=gpm)))
        refs.append(result.counters["ept_walk_refs"])
    assert refs == sorted(refs, reverse=True)
    assert refs[0] > 2 * refs[-1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"l2": "64/4"}, r"l2='64/4': give a tuple of Array"),
        ({"l1d": (64, 4)}, r"l1d=\(64, 4\): give a tuple of Array"),
        ({"gpm": "some"}, "gpm='some': give 'shared', 'off' or an Array"),
        ({"replacement": "fifo"}, "replacement 'fifo': choose lru, plru"),
        ({"replacement": 5}, "replacement 5: choose lru, plru"),
        ({"replacement": ("lru",)}, "for each level one"),
    ],
)
def test_a_geometry_that_is_none(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Geometry(**{"name": "mine", "l1i": (Array(64, 4),), "l1d": (Array(64, 4),), **fields})


def test_an_array_that_is_none() -> None:
    for bad in (("64", 4), (64.0, 4), (64, None), (True, 1), (64, 4, 5), (64, 4, ("4k",), 3), (64, 4, ("4k",), ("x",))):
        with pytest.raises(ConfigError, match="Array: "):
            Array(*bad)  # type: ignore[arg-type]


def test_what_a_geometry_says_tells_geometries_apart() -> None:
    said = {name: str(geometry(name)) for name in PRESETS}
    assert said["zen2"] == said["zen3"]
    assert len(set(said.values())) == len(PRESETS) - 1
    assert said["skylake"].startswith(
        "L1I 128/8 4k, 8/fa 2m; L1D 64/4 4k, 32/4 2m, 4/fa 1g; L2 1536/12 4k 2m, 16/4 1g;"
    )
    base = geometry("icelake")
    changes: list[dict[str, Any]] = [
        {}, {"l1s": ()}, {"l2": (Array(2048, 16, ("4k", "2m", "1g")),)}, {"l2_fetches": False}, {"smash": True},
        {"psc": ()}, {"epsc": ()}, {"gpm": "off"}, {"gpm": "shared"}, {"replacement": ("lru", "plru")},
        {"replacement": ("plru", "lru")}, {"replacement": ("plru", "plru")}, {"unbounded": True}, {"l2": ()},
        {"l2i": (Array(64, 4),)},
    ]  # fmt: skip
    others = [msgspec.structs.replace(base, **change) for change in changes]
    assert len({str(g) for g in others}) == len(others)


@pytest.mark.parametrize(("entries", "ways"), [(0, 4), (64, 0), (-64, 4), (64, -4)])
def test_an_array_without_entries_is_refused_when_it_is_made(entries: int, ways: int) -> None:
    with pytest.raises(ConfigError, match=f"Array: {entries}/{ways} has no entries; both numbers must be at least 1"):
        Array(entries, ways)
