"""What is asked between a miss of both levels and the walk: kernel and specification answer and count alike."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu.errors import ConfigError, StateError
from fastmmu.reference.tlb.extended import ExtendedTlb
from fastmmu.reference.tlb.tlb import value
from fastmmu.tlb.extensions import parse_extensions
from fastmmu.tlb.geometry import Array, Geometry, geometry
from fastmmu.tlb.tlb import TLB
from tests.support.tlb_programs import Program, canonical, run

SHAPES = (
    Geometry(
        name="plain", l1i=(Array(2, 2),), l1d=(Array(4, 2), Array(2, 1, ("2m",))), l2=(Array(8, 2, ("4k", "2m")),)
    ),
    Geometry(name="pieces", l1i=(Array(2, 2),), l1d=(Array(3, 3, ("4k", "2m")),), l2=(Array(8, 8),), smash=True),
    Geometry(name="one_level", l1i=(Array(2, 2),), l1d=(Array(4, 2),)),
)
EXTENSIONS = (
    "clustered:8:16/2", "clustered:4:4/4", "clustered:2:8/1", "coalesced:8:16/4", "range:3", "pom:4k",
    "prefetch:sequential:4", "prefetch:distance:4", "prefetch:recency:4",
    "prefetch:stride:4", "prefetch:markov:4", "skewed:16/4", "skewed:3/3", "rehash:16/4", "rehash:8/8:ascending",
    "mix:16/4", "mix:4/4", "clustered:8:8/2+range:2+pom:4k+prefetch:distance:2",
)  # fmt: skip


def pages_of(rng: random.Random) -> dict[int, tuple[int, int]]:
    """A table: runs, groups whose frames are shuffled, holes, rights that differ; also pages of 2 MB, at a border."""
    found: dict[int, tuple[int, int]] = {}
    for base in (0, 0x20_0000, 0x3FFF_FFC0_0000, canonical(0x01FF_FFFF_FFE0_0000)):
        frame, group, guest = rng.randrange(0, 1 << 20), list(range(8)), rng.randrange(0, 1 << 20)
        frame, flags = rng.choice([frame, frame & ~7, 0]), rng.choice(["urwexd", "urwexdg", "sr"])
        if rng.random() < 0.5:
            rng.shuffle(group)
        for i in range(48):
            if rng.random() < 0.1:
                continue
            if rng.random() < 0.1:
                flags = rng.choice(["urwexd", "urwexdg", "urx"])
            at = frame + (i & ~7) + group[i & 7]
            found[base + (i << 12)] = value(at << 12, flags=flags), rng.choice([guest + i, at]) << 12
    for i in range(6):
        found[0x4000_0000 + (i << 21)] = value(0x8000_0000 + (i << 21), "2m"), i << 21
    return found


def give(kernel: TLB, spec: ExtendedTlb, pages: dict[int, tuple[int, int]]) -> None:
    la = sorted(pages)
    both = [np.array([pages[at][i] for at in la], np.uint64) for i in range(2)]
    kernel.query_pages(np.array(la, np.uint64), *both)
    spec.pages = pages


def check(shape: Geometry, seed: int, n: int) -> dict[str, Any]:
    kernel, spec, rng = TLB(shape), ExtendedTlb(shape), random.Random(seed)
    pages: dict[int, tuple[int, int]] = {}
    for i, (name, *args) in enumerate(Program(seed).operations(n)):
        if i % 400 == 0:
            pages = pages_of(rng)
            give(kernel, spec, pages)
        if name in ("access", "refill") and rng.random() < 0.9:
            near = sorted(pages)[(i // 3 * rng.choice([1, 3])) % len(pages)]
            at = rng.choice(list(pages)) if rng.random() < 0.5 else near
            args[0], args[1] = at, pages[at][0]
        assert run(kernel, name, *args) == run(spec, name, *args), f"operation {i} of seed {seed}: {name} {args}"
    assert kernel.entries() == spec.entries()
    counted, expected = kernel.counters(), spec.counters()
    assert counted["extensions"] == expected["extensions"]
    assert counted == expected
    return counted


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("extension", EXTENSIONS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1))
def test_kernel_equals_specification(extension: str, shape: Geometry, seed: int) -> None:
    check(msgspec.structs.replace(shape, extension=extension), seed, 1000)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_programs_get_everywhere(extension: str) -> None:
    """What the equality above is worth: each finds, fills, makes room and is invalidated."""
    counted = check(msgspec.structs.replace(SHAPES[0], extension=extension), 5, 12000)["extensions"]
    for name in (one.name for one in parse_extensions(extension)):
        rare = ("invalidated",) if name != "prefetch" or "sequential" in extension else ()  # a buffer of 4 entries
        rare += () if "stride" in extension else ("evictions",)  # all accesses are of one instruction
        assert min(counted[name][what] for what in ("lookups", "hits", "fills", *rare)) > 0, name


def test_no_flush_leaves_anything() -> None:
    """Every event that invalidates a whole context does so here; by address, the page alone."""
    la, of = 0x1000, value(0x9000)
    for extension in ("clustered:8", "range:32", "pom:16m", "prefetch:sequential"):
        for event in (
            lambda tlb: tlb.mov_cr3(1, 2), lambda tlb: tlb.cr0_pg(1), lambda tlb: tlb.cr4_all(1),
            lambda tlb: tlb.cr4_pcid(1, 2), lambda tlb: tlb.invpcid(1, 1, 2), lambda tlb: tlb.invpcid(2, 1),
            lambda tlb: tlb.invpcid(3, 1), lambda tlb: tlb.invvpid(1, 1), lambda tlb: tlb.invvpid(2),
            lambda tlb: tlb.invvpid(3, 1), lambda tlb: tlb.invept(1, 0x5000), lambda tlb: tlb.invept(2),
            lambda tlb: tlb.tlb_control(1), lambda tlb: tlb.tlb_control(3, 1), lambda tlb: tlb.reset(),
            lambda tlb: tlb.invlpg(la + 0x1000, 1, 2), lambda tlb: tlb.invpcid(0, 1, 2, la + 0x1000),
            lambda tlb: tlb.invvpid(0, 1, la + 0x1000), lambda tlb: tlb.page_fault(la + 0x1000, 1, 2),
            lambda tlb: tlb.ept_violation(0, 0x5000, vpid=1, pcid=2, la=la + 0x1000),
            lambda tlb: tlb.invlpga(la + 0x1000, 1),
        ):  # fmt: skip
            tlb = TLB(geometry("skylake", extension=extension))
            two = np.array([la, la + 0x1000], np.uint64), np.array([of, of + 0x1000], np.uint64)
            tlb.query_pages(*two, np.array([0, 4096], np.uint64))
            tlb.switch(1, 2, 0x5000)
            tlb.fill(la, of)
            if extension == "pom:16m":
                tlb.fill(la + 0x1000, of + 0x1000)
            event(tlb)
            assert tlb.lookup(la + 0x1000) == (0, 0), extension


def test_what_is_refused() -> None:
    for text in ("clustered:3", "clustered:8:12/4", "clustered:8:0/0", "range:0", "range:x", "pom:3m", "pom:1k",
                 "prefetch", "prefetch:strides", "skewed:8/2", "mix:8192/8", "rehash:16/4:up", "skewed:16/4:ascending",
                 "prefetch:distance:65", "victim", "range+range", "pom:16g", "", "+",
                 "clustered:8:8:8"):  # fmt: skip
        with pytest.raises(ConfigError, match="TLB extension"):
            geometry("skylake", extension=text)
    with pytest.raises(ConfigError, match="hyperthreads"):
        TLB.hyperthreads(2, geometry("skylake", extension="range"))
    none = np.zeros(0, np.uint64)
    with pytest.raises(StateError, match="no extension"):
        TLB().query_pages(none, none, none)
    tlb = TLB(geometry("skylake", extension="range"))
    for la in ([4096, 0], [1], [1 << 60], [0, 0]):
        some = np.array(la, np.uint64)
        with pytest.raises(StateError, match="la"):
            tlb.query_pages(some, np.full(len(la), value(0), np.uint64), some)
    with pytest.raises(StateError, match="length"):
        tlb.query_pages(np.zeros(1, np.uint64), none, none)


@pytest.mark.parametrize(
    "text", ["clustered:8:512/8", "coalesced:4:64/4", "range:32", "pom:16m", "pom:64k", "prefetch:recency:16"]
)
def test_text_and_back(text: str) -> None:
    assert "+".join(str(one) for one in parse_extensions(text)) == text
    assert str(geometry("skylake", extension=text)).count(text) == 1
    assert geometry(geometry("skylake", extension=text), extension="none").extension == ()
