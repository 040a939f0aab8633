"""Memory types: kernel against specification over every combination and random range registers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmmu
from fastmmu import reference as ref

TYPES = (0, 1, 4, 5, 6)
KINDS = st.sampled_from(TYPES)
FIXED = st.lists(KINDS, min_size=8, max_size=8).map(lambda kinds: int.from_bytes(bytes(kinds), "little"))


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int]:
    """PHYSBASE and PHYSMASK of a power of two between 4 KiB and 4 GiB, somewhere low; sometimes not valid."""
    size = 1 << draw(st.integers(12, 32))
    base = draw(st.integers(0, 7)) * size
    valid = draw(st.sampled_from((0x800, 0x800, 0)))
    return base | draw(KINDS), ((1 << 46) - size) | valid


@given(
    def_type=st.builds(lambda kind, bits: kind | bits, KINDS, st.sampled_from((0x800, 0xC00, 0x400, 0))),
    fixed=st.lists(FIXED, min_size=11, max_size=11),
    variable=st.lists(ranges(), max_size=4),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_range_registers(def_type: int, fixed: list[int], variable: list[tuple[int, int]], data: st.DataObject) -> None:
    kernel = fastmmu.Mtrrs(def_type, fixed, variable)
    spec = ref.Mtrrs(def_type=def_type, fixed=tuple(fixed), variable=tuple(variable))
    edges = [0, 0x7_FFFF, 0x8_0000, 0xB_FFFF, 0xC_0000, 0xF_FFFF, 0x10_0000]
    edges += [base & ~0xFFF for base, _ in variable] + [(base & ~0xFFF) - 1 for base, _ in variable if base > 0xFFF]
    edges += data.draw(st.lists(st.integers(0, (1 << 36) - 1), min_size=5, max_size=20))
    for pa in edges:
        assert int(kernel.type_at(pa)) == int(spec.type_at(pa)), f"{pa:#x}"


@pytest.mark.parametrize("cd", [0, 1 << 30], ids=["cached", "CD"])
@pytest.mark.parametrize("nested", [False, True], ids=["MTRR", "EPT"])
def test_every_combination(nested: bool, cd: int) -> None:
    """A page whose PAT entry has each type, under each type below it, and with the PAT ignored."""
    tables = {0x1000: 0x2027, 0x2000: 0x3027, 0x3000: 0x4027, 0x4000: 0x5067}
    ept_tables = {0x8000: 0x9007, 0x9000: 0xA007, 0xA000: 0xB007, **{0xB000 + 8 * i: i << 12 | 0x37 for i in range(5)}}
    for below, pat, ipat in itertools.product(TYPES, (*TYPES, 7), (0, 1) if nested else (0,)):
        registers: dict[str, Any] = {"cr0": 0x8001_0031 | cd, "cr3": 0x1000, "ac": 1, "pat": pat}
        mem = tables | (ept_tables | {0xB028: 0x5007 | below << 3 | ipat << 6} if nested else {})
        memory = fastmmu.PhysicalMemory(0xC000)
        for hpa, entry in mem.items():
            memory.write64(hpa, entry)
        spec = ref.walk(
            ref.SparseMemory(mem),
            ref.State(mtrrs=ref.Mtrrs(def_type=0x800 | below), **registers),
            0,
            "r",
            ept=ref.Ept(eptp=0x801E) if nested else None,
        )
        state = fastmmu.GuestState(mtrrs=fastmmu.Mtrrs(0x800 | below), **registers)
        kernel = fastmmu.walk(memory, state, 0, eptp=0x801E if nested else None)
        assert isinstance(spec, ref.Mapped)
        assert kernel.memory_type is not None
        assert int(kernel.memory_type) == spec.memory_type, (below, pat, ipat)
