"""Pages mapped beforehand by a VMM in Python."""

from __future__ import annotations

from typing import Any

import pytest

from fastmmu import Action, Config, Exit, GuestState, Kvm, Machine, MemorySlot, PolicyError, StateError
from fastmmu.exits import ExitReason


class Asking(Kvm):
    """Maps what it is told at the next CPUID."""

    wanted: list[tuple[Any, bool]]
    found: list[bool]

    def default(self, vcpu: Any, exit: Exit) -> int:
        if exit.reason == ExitReason.CPUID:
            Asking.found = [vcpu.map_page(gpa, write=write) for gpa, write in Asking.wanted]
            return Action.EMULATED
        return super().default(vcpu, exit)


def machine(**fields: Any) -> Machine:
    """4 MB of it mapped by large pages from linear address 0 on."""
    slots = [MemorySlot(0x1_0000_0000, 1 << 21, host="untouched"), MemorySlot(0x1_4000_0000, 1 << 16, readonly=True)]
    m = Machine(
        Config(memory="64M", vmm=Asking, **{"mmu": "ept", "host_pages": "4k", **fields}),
        guest_kernel=False,
        state=GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46),
        slots=slots,
    )
    entries = {0x1000: 0x2003, 0x2000: 0x3003, 0x2020: 0x4003, 0x2028: 0x5003, 0x3000: 0x83, 0x3008: 0x20_0083}
    for address, entry in {**entries, 0x4000: 0x1_0000_0083, 0x5000: 0x1_4000_0083}.items():
        m.guest_memory.u64[address >> 3] = entry
    return m


def asked(m: Machine, *wanted: tuple[Any, bool]) -> list[bool]:
    Asking.wanted, Asking.found = list(wanted), []
    m.exit_instruction(10)
    return Asking.found


def violations(m: Machine) -> int:
    return int(m.counters()["exits_by_reason"].get("ept_violation", 0))


@pytest.mark.parametrize("fields", [{}, {"kvm": "6.1"}, {"tdp_mmu": False}, {"ept_ad": False}, {"vpid": True}], ids=str)
def test_a_page_that_is_mapped_takes_no_violation(fields: dict[str, Any]) -> None:
    m, plain = machine(**fields), machine(**fields)
    for each in (m, plain):
        each.store(0, 1)  # the tables are there
    before = violations(m)
    assert asked(m, *((0x10_0000 + 4096 * i, True) for i in range(8))) == [True] * 8
    for each in (m, plain):
        for i in range(8):
            each.store(0x10_0000 + 4096 * i, i)
    assert violations(m) == before
    assert violations(plain) == before + 8
    assert m.vmm.counters()["pages"] == plain.vmm.counters()["pages"]
    assert asked(m, (0x10_0000, True), (0x10_0000, False)) == [True, True]


def test_what_is_logged_is_what_an_access_logs() -> None:
    """KVM logs a page as soon as its entry is writable."""
    m, plain = machine(), machine()
    for each in (m, plain):
        each.store(0, 1)
        each.vmm.start_dirty_log(0)
    asked(m, (0x10_0000, True), (0x10_1000, False))
    plain.store(0x10_0000, 1)
    plain.load(0x10_1000)
    found = m.vmm.dirty_log(0)
    assert found[0x100]
    assert found[0x100:0x102].tolist() == plain.vmm.dirty_log(0)[0x100:0x102].tolist()


def test_what_is_not_mapped() -> None:
    m = machine()
    assert asked(m, (0x8000_0000, False), (0x8000_0000, True), ((1 << 48) - 1, True)) == [False] * 3
    assert asked(m, (0x1_0000_0000, False), (0x1_4000_0000, False), (0x1_4000_0000, True)) == [True, True, False]
    assert asked(m, (0x1_0000_0000, True)) == [True]
    for bad in (1 << 48, -1, 1 << 64):
        with pytest.raises(PolicyError, match="gpa"):
            asked(m, (bad, False))
    m.store(0, 1)


def test_shadow_paging_has_no_such_thing() -> None:
    with pytest.raises(PolicyError, match="is for EPT"):
        asked(machine(mmu="shadow"), (0x1000, False))


def test_tables_run_out() -> None:
    """It is refused, and what is mapped stays."""
    m = machine(table_pages=16)
    found = asked(m, *((gpa, False) for gpa in range(0, 64 << 20, 2 << 20)))
    assert all(found)  # older tables make room
    with pytest.raises((StateError, PolicyError)):
        asked(m, ("x", False))
