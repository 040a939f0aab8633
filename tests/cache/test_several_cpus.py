"""Several CPUs on one L3: the kernel is the specification, whatever they do in turns; what coherence promises."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import ConfigError
from fastmmu.cache import CacheDescription, CacheHierarchy
from fastmmu.cache.names import LEVELS
from fastmmu.reference.cache.hierarchy import Hierarchy
from tests.support.cache_descriptions import SMALL, WALKS, descriptions


def on_each(description: CacheDescription, n: int) -> tuple[list[CacheHierarchy], list[Hierarchy]]:
    kernels, specs = [CacheHierarchy(description)], [Hierarchy(description)]
    for _ in range(1, n):
        kernels.append(CacheHierarchy(kernels[0]))
        specs.append(Hierarchy(description, specs[0]))
    return kernels, specs


def check(description: CacheDescription, cpus: int, seed: int, n: int) -> list[Hierarchy]:
    kernels, specs = on_each(description, cpus)
    rng = random.Random(seed)
    size = 64 * rng.choice([8, 40, 150, 600])
    for i in range(n):
        cpu = rng.randrange(cpus)
        kernel, spec = kernels[cpu], specs[cpu]
        near = rng.randrange(size) if rng.random() < 0.7 else rng.randrange(0, size, 64 * rng.choice([1, 4, 7]))
        what = rng.random()
        if what < 0.6:
            access = rng.choice(["r", "r", "w", "rw", "x"])
            cause = rng.choice(["read", "write", "fetch", "kernel", "vmm"])
            assert kernel.use(near, access, cause) == spec.use(near, access, cause), f"reference {i}"
        elif what < 0.8:
            hpa = np.array([rng.randrange(size) for _ in range(4)], np.uint64)
            op = np.array([rng.choice([0, 0, 1, 2, 3]) for _ in range(4)], np.uint8)
            names = [(("r", "read"), ("w", "write"), ("rw", "write"), ("x", "fetch"))[o] for o in op]
            levels = [spec.use(int(a), *names[j]) for j, a in enumerate(hpa)]
            assert kernel.access(hpa, op) == tuple(levels.count(level) for level in LEVELS), f"reference {i}"
        else:
            steps = [
                (rng.choice(WALKS), rng.randrange(0, size, 8), rng.random() < 0.2) for _ in range(rng.randrange(5))
            ]
            assert kernel.walk(steps) == spec.walk(steps), f"reference {i}, a walk"
        if i % 40 == 0 or i == n - 1:
            for one, other in zip(kernels, specs, strict=True):
                assert one.lines() == other.lines(), f"after reference {i}"
            assert kernel.open_rows() == spec.open
            coherent(kernels)
    for one, other in zip(kernels, specs, strict=True):
        counted = one.counters()
        assert (counted["invalidated"], counted["supplied"]) == (other.invalidated, other.supplied)
        assert counted["written"] == {level: other.written[level] for level in ("l1", "l2", "l3", "memory")}
        assert counted["references"] == {
            cause: tuple(other.found[cause, level] for level in LEVELS) for cause in counted["references"]
        }
    return specs


def coherent(kernels: list[CacheHierarchy]) -> None:
    """A line that is dirty in an L1D is in no other CPU, and none is dirty in two."""
    held = [[line for line in kernel.lines() if line[0] != "l3"] for kernel in kernels]
    for i, lines in enumerate(held):
        others = [line for j, more in enumerate(held) if j != i for line in more]
        written = {at for cache, _, _, at, dirty, _ in lines if dirty and cache == "l1d"}
        assert not written & {line[3] for line in others}
        assert not {line[3] for line in lines if line[4]} & {line[3] for line in others if line[4]}


@settings(max_examples=100, deadline=None)
@given(description=descriptions(), cpus=st.integers(2, 4), seed=st.integers(0, (1 << 32) - 1))
def test_kernel_equals_specification(description: CacheDescription, cpus: int, seed: int) -> None:
    check(description, cpus, seed, 400)


@pytest.mark.parametrize("inclusion", ["inclusive", "exclusive", "neither"])
@pytest.mark.parametrize("switches", [{}, {"walker": "l2"}, {"tables": ("l2", "l3")}, {"l3": None}, {"l2": None},
                                      {"l2_inclusive": True}], ids=str)  # fmt: skip
def test_every_mode(inclusion: str, switches: dict[str, Any]) -> None:
    if "l2" in switches and inclusion == "exclusive":
        pytest.skip("an exclusive L3 takes what leaves L2")
    specs = check(msgspec.structs.replace(SMALL, inclusion=inclusion, **switches), 3, 7, 1500)
    assert all(spec.invalidated for spec in specs)
    assert all(spec.supplied for spec in specs)


def test_a_line_that_goes_to_and_fro() -> None:
    one = CacheHierarchy("skylake")
    other = CacheHierarchy(one)
    assert one.description == other.description
    assert one.use(0, "w") == "dram"
    assert one.use(0, "w") == "l1"
    assert other.use(0) == "l3"  # written back by the one that has it
    assert other.counters()["supplied"] == 1
    assert one.use(0) == other.use(0) == "l1"  # both have it, clean
    assert one.use(0, "w") == "l3"  # the right to write comes from there
    assert one.counters()["invalidated"] == 1
    assert one.use(0, "w") == "l1"
    assert other.use(0, "w") == "l3"
    assert [line[0] for line in one.lines() if line[0] != "l3"] == []


def test_one_cpu_alone_is_as_it_was() -> None:
    description = msgspec.structs.replace(SMALL, inclusion="neither")
    one, beside = CacheHierarchy(description), CacheHierarchy(description)
    CacheHierarchy(beside)  # which does nothing
    hpa = np.random.default_rng(1).integers(0, 1 << 14, 5_000, np.uint64)
    op = np.random.default_rng(2).integers(0, 4, 5_000).astype(np.uint8)
    assert one.access(hpa, op) == beside.access(hpa, op)
    assert one.lines() == beside.lines()


def test_frames_are_those_of_all() -> None:
    one = CacheHierarchy("skylake")
    other = CacheHierarchy(one)
    one.use_frames("shuffled:3", 1 << 24)
    one.use(0x5000)
    assert other.use(0x5000) in {"l3", "row"}
    assert CacheHierarchy(one).use(0x5000) in {"l3", "row"}


def test_as_many_as_there_can_be() -> None:
    first = CacheHierarchy("skylake l2=none")
    more = [CacheHierarchy(first) for _ in range(63)]
    with pytest.raises(ConfigError, match="64 CPUs"):
        CacheHierarchy(first)
    assert len(more) == 63
