"""The TDP MMU and the older one make the same mappings (kvm_policy.md §10)."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings

from fastmmu import Config, Machine
from tests.support.flat_guest import PAGE, flat
from tests.support.guest_programs import Program, programs
from tests.support.guest_runs import execute, machine_for
from tests.support.vmm_tables import Leaf, leaves

LINUX = Config(memory="64M", mmu="ept", kvm="6.1", vpid=True)
CONFIGS = [
    LINUX,
    LINUX.replace(host_pages="2m"),
    LINUX.replace(host_pages="2m", nx_huge_pages=True),
    LINUX.replace(host_pages="untouched"),
    LINUX.replace(host_pages="untouched", ept_ad=False),
    LINUX.replace(pml=True, host_pages="2m"),
]
SLIDES = [LINUX.replace(kvm="slides"), LINUX.replace(kvm="slides", host_pages="2m", nx_huge_pages=True)]

examples = settings(
    max_examples=int(os.environ.get("FASTMMU_EXAMPLES", "25")), derandomize="FASTMMU_EXAMPLES" not in os.environ
)


def ran(config: Config, program: Program, *, log: bool) -> tuple[Machine, list[list[bool]]]:
    """The machine after the program; logs read after each eighth instruction of it."""
    machine = machine_for(config, program.regime, program.cr3, program.before)
    logs = []
    if log:
        machine.vmm.start_dirty_log(0)
    for number, (instruction, came) in enumerate(zip(program.instructions, program.outcomes, strict=True)):
        assert execute(machine, instruction) == came
        if log and number % 8 == 7:
            logs.append(machine.vmm.dirty_log(0).nonzero()[0].tolist())
    return machine, logs


def near(leaf: Leaf, mapped: set[int]) -> bool:
    """Is any of the aligned eight small pages around a leaf among those mapped?"""
    first = leaf.address & ~0x7FFF
    return leaf.size == 4096 and bool(mapped & set(range(first, first + 0x8000, 0x1000)))


@pytest.mark.parametrize("log", [False, True], ids=["", "logged"])
@examples
@given(programs)
def test_the_same_leaves(log: bool, program: Program) -> None:
    """Every leaf of the TDP MMU is one of the older MMU's, which has neighbours of faults besides: prefetched."""
    for config in CONFIGS:
        (tdp, tdp_logs), (older, older_logs) = (
            ran(config.replace(tdp_mmu=tdp_mmu), program, log=log) for tdp_mmu in (True, False)
        )
        mapped, more = set(leaves(tdp)), set(leaves(older))
        assert mapped <= more
        assert all(near(leaf, {leaf.address for leaf in mapped}) for leaf in more - mapped)
        assert tdp_logs == older_logs


@examples
@given(programs)
def test_without_prefetch_the_leaves_are_equal(program: Program) -> None:
    """KVM of the slides prefetches nothing: equal sets, and equal counters of exits."""
    for config in SLIDES:
        tdp, older = (ran(config.replace(tdp_mmu=tdp_mmu), program, log=False)[0] for tdp_mmu in (True, False))
        assert set(leaves(tdp)) == set(leaves(older))
        assert tdp.counters()["exits_by_reason"] == older.counters()["exits_by_reason"]


def test_the_older_mmu_prefetches() -> None:
    """Else the first test would say no more than the second."""
    found = []
    for tdp_mmu in (True, False):
        machine = flat(LINUX.replace(tdp_mmu=tdp_mmu))
        machine.access(PAGE)
        found.append(set(leaves(machine)))
    assert found[0] < found[1]
