"""Every counter of the kernels has its row in fastmmu.counters, and what reads the rows finds all that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastmmu import Config, CostModel, Machine, Result
from fastmmu.counters import APIC, CAUSES, COUNTERS, STATS, Counter, reader

SRC = Path(__file__).parents[2] / "src" / "fastmmu"
STRUCTS = [
    ("cpu", "cpu/vcpu.pxd", "Counters", COUNTERS),
    ("guest", "machine/kernel_state.pxd", "GuestCounters", COUNTERS),
    ("kvm", "kvm/kvm.pxd", "KvmCounters", COUNTERS),
    ("apic", "cpu/interrupts.pxd", "ApicCounters", APIC),
]


def members(header: str, struct: str) -> list[str]:
    block = re.search(rf"cdef struct {struct}:.*\n((?:    .*\n)+)", (SRC / header).read_text())
    assert block
    lines = [line.partition("#")[0].split(None, 1)[1] for line in block[1].splitlines()]
    return [name.partition("[")[0].strip() for line in lines for name in line.split(",")]


@pytest.mark.parametrize(("room", "header", "struct", "rows"), STRUCTS, ids=[name for _, _, name, _ in STRUCTS])
def test_every_member_of_a_struct_is_a_row(room: str, header: str, struct: str, rows: tuple[Counter, ...]) -> None:
    named = {member for row in rows for member in re.findall(rf"\b{room}\.(\w+)", row.at)}
    there = {"exits_by_reason" if name == "exits" else name for name in members(header, struct)}
    assert there <= named
    assert named - there <= {"remote_flushes", "flush_requests", "ipis"}  # of the VM


@pytest.mark.parametrize(
    ("room", "header", "struct"), [("stats", "kvm/kvm.pxd", "KvmStats"), ("mmu", "mmu/mmu.pxd", "MmuCounters")]
)
def test_a_row_names_members_that_there_are(room: str, header: str, struct: str) -> None:
    named = {member for row in (*COUNTERS, *STATS) for member in re.findall(rf"\b{room}\.(\w+)", row.at)}
    assert named - {"shadow"} <= set(members(header, struct))


@pytest.mark.parametrize("rows", [COUNTERS, APIC, STATS], ids=["counters", "apic", "stats"])
def test_a_name_stands_once(rows: tuple[Counter, ...]) -> None:
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)


def test_what_results_have_are_the_rows() -> None:
    plain = [row.name for row in COUNTERS]
    assert list(Machine(Config()).counters()) == plain
    machine = Machine(Config(mmu="ept", tpr="apicv", memory="64M"))
    assert list(machine.counters()) == plain + [row.name for row in APIC]
    assert list(machine.vmm.stats()) == [row.name for row in STATS]


def test_costs_are_those_of_the_model() -> None:
    costs = CostModel.load()
    priced = [row.cost for row in COUNTERS if row.cost is not None]
    assert all(costs.price(cost.price) > 0 for cost in priced)
    assert {cost.cause for cost in priced} == CAUSES.keys()


def test_results_document_every_row() -> None:
    for row in (*COUNTERS, *APIC):
        assert re.search(rf"\b{row.name}\b", Result.__doc__ or ""), row.name


def test_sums_of_members() -> None:
    read = reader([Counter("a", "cpu.x[1] - mmu.y_2"), Counter("b", "4 * (cpu.x[0] + mmu.y_2)")])
    assert read({"cpu": {"x": [1, 20]}, "mmu": {"y_2": 3}}) == {"a": 17, "b": 16}
