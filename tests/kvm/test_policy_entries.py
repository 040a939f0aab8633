"""Entries by page, `vm.mmu.map()` and so on, of a machine whose VMM in Python asks for them at a VM exit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmmu import Action, Config, Exit, GuestState, Kvm, Machine, MemorySlot, MemoryType, PolicyError
from fastmmu.exits import ExitReason
from tests.support.vmm_tables import check_reverse_maps

FAR, READ_ONLY = 0x1_0000_0000 >> 12, 0x1_4000_0000 >> 12
SLOTS = (
    MemorySlot(FAR << 12, 1 << 21, host="untouched"),
    MemorySlot(READ_ONLY << 12, 1 << 16, readonly=True),
)
MACHINES: list[dict[str, Any]] = [
    {"kvm": "6.1"},
    {"kvm": "6.1", "pml": True, "vpid": True},
    {"kvm": "6.1", "tdp_mmu": True},
    {"ept_ad": False},
    {"host_pages": "2m", "kvm": "6.1"},
    {"host_pages": "untouched"},
    {"host_pages": "untouched", "host_memory": "16M"},
]


class Asking(Kvm):
    """Makes a call of its MMU at the next CPUID."""

    task: Callable[[Any], Any]
    found: Any

    def default(self, vcpu: Any, exit: Exit) -> int:
        if exit.reason != ExitReason.CPUID:
            return super().default(vcpu, exit)
        Asking.found = Asking.task(self.mmu)
        return Action.EMULATED


def machine(**fields: Any) -> Machine:
    """Linear addresses below 64 MB are guest-physical ones; behind them the slots, by 2 MB each."""
    m = Machine(
        Config(memory="64M", vmm=Asking, **{"mmu": "ept", "host_pages": "4k", **fields}),
        guest_kernel=False,
        state=GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46),
        slots=SLOTS,
    )
    words = m.guest_memory.u64
    words[0x1000 >> 3], words[0x2000 >> 3] = 0x2063, 0x3063
    words[0x3000 >> 3 : 0x3100 >> 3] = np.arange(32, dtype=np.uint64) << np.uint64(21) | np.uint64(0xE3)
    words[0x3100 >> 3], words[0x3108 >> 3] = FAR << 12 | 0xE3, READ_ONLY << 12 | 0xE3
    return m


AT_FAR, AT_READ_ONLY = 32 << 21, 33 << 21


def ask(m: Machine, task: Callable[[Any], Any]) -> Any:
    Asking.task = staticmethod(task)  # type: ignore[assignment]
    m.exit_instruction(10)
    return Asking.found


def violations(m: Machine) -> int:
    return int(m.counters()["exits_by_reason"].get("ept_violation", 0))


@pytest.mark.parametrize("fields", MACHINES)
def test_pages_mapped_need_no_exit(fields: dict[str, Any]) -> None:
    m = machine(**fields)
    for address in (0x5000, AT_FAR, AT_READ_ONLY):
        m.load(address)
    gfns = np.concatenate([np.arange(0x1000, 0x1040), np.arange(FAR, FAR + 9)])
    assert ask(m, lambda mmu: mmu.map(gfns)).all()
    before = violations(m)
    for gfn in range(0x1000, 0x1040):
        m.store(gfn << 12, gfn)
    for page in range(9):
        m.store(AT_FAR + (page << 12), page)
    assert violations(m) == before
    rows = ask(m, lambda mmu: mmu.lookup(gfns))
    assert (rows["level"] == 1).all()
    assert (rows["rights"] == 7).all()
    if fields.get("ept_ad", True):
        assert rows["dirty"].all()
    assert [m.load(gfn << 12).value for gfn in range(0x1000, 0x1040)] == list(range(0x1000, 0x1040))
    if not fields.get("host_memory"):
        check_reverse_maps(m)


def test_what_a_machine_does_not_map() -> None:
    m = machine()
    m.load(AT_READ_ONLY)
    pages = [READ_ONLY + 1, READ_ONLY + 2, 1 << 30]
    assert ask(m, lambda mmu: mmu.map(pages)).tolist() == [False] * 3
    assert ask(m, lambda mmu: mmu.map(pages, rights=5)).tolist() == [True, True, False]
    assert ask(m, lambda mmu: mmu.map(0x400, level=2)) is False  # the host has pages of 4 KB
    assert ask(machine(host_pages="2m"), lambda mmu: mmu.map(0x400, level=2)) is True
    with pytest.raises(PolicyError, match="the memory behind a gfn of a machine is its slot's"):
        ask(m, lambda mmu: mmu.map(1, 2))
    for call in (lambda mmu: mmu.eptp, lambda mmu: mmu.zap_all(), lambda mmu: mmu.tables):
        with pytest.raises(PolicyError, match=r"use vcpu\.roots"):
            ask(m, call)
    assert ask(m, lambda mmu: mmu.memory) is None
    kept = ask(m, lambda mmu: mmu)
    with pytest.raises(PolicyError, match="does not stand still"):
        kept.map(1)
    with pytest.raises(PolicyError, match="does not stand still"):
        kept.lookup([1])


def test_the_memory_type_is_that_asked_for_or_kvms() -> None:
    m = machine()
    m.load(0x5000)
    ask(m, lambda mmu: mmu.map([0x1000, 0x1001], memory_type=MemoryType.WT, ignore_pat=True))
    ask(m, lambda mmu: mmu.map(0x1001))
    entries = ask(m, lambda mmu: mmu.lookup([0x1000, 0x1001]))["entry"].tolist()
    assert [entry >> 3 & 15 for entry in entries] == [4 | 8, 6 | 8]


def test_a_page_protected_faults_once_and_is_fixed() -> None:
    m = machine(kvm="6.1")
    m.store(0x5000, 7)
    assert ask(m, lambda mmu: mmu.write_protect([5, 6])).tolist() == [True, False]
    before = violations(m)
    m.store(0x5000, 8)
    assert violations(m) == before + 1
    assert m.load(0x5000).value == 8
    assert ask(m, lambda mmu: mmu.write_protect(5)) is True


def test_dirty_flags_say_what_was_written() -> None:
    m = machine(kvm="6.1", vpid=True)
    pages = range(0x1000, 0x1010)
    m.load(0x5000)
    ask(m, lambda mmu: mmu.map(pages))
    for _ in range(2):
        for page in (1, 4):
            m.store((0x1000 + page) << 12, 1)
        m.load(0x1002000)
        before = violations(m)
        assert ask(m, lambda mmu: mmu.clear_dirty(pages)).nonzero()[0].tolist() == [1, 4]
        assert not ask(m, lambda mmu: mmu.clear_dirty(pages)).any()
        assert violations(m) == before
    with pytest.raises(PolicyError, match="no D flag"):
        ask(machine(ept_ad=False), lambda mmu: mmu.clear_dirty(1))


def test_a_page_marked_is_mmio_until_it_is_mapped() -> None:
    m = machine(kvm="6.1")
    m.store(0x5000, 7)
    ask(m, lambda mmu: mmu.mark_mmio([5]))
    assert ask(m, lambda mmu: mmu.lookup(5))["mmio"]
    mmio = m.counters()["mmio"]
    m.load(0x5000)
    assert m.counters()["mmio"] == mmio + 1
    assert ask(m, lambda mmu: mmu.zap([5])).tolist() == [False]
    assert m.load(0x5000).value == 7


# ---- shadow paging -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kvm", ["slides", "6.1"])
def test_under_shadow_paging_every_entry_of_a_page_counts(kvm: str) -> None:
    """Linear addresses are looked up, guest-physical pages taken away, whatever linear addresses lead there."""
    m = machine(mmu="shadow", kvm=kvm)
    m.guest_memory.u64[0x3110 >> 3] = 0xE3  # the first 2 MB once more
    m.store(0x9000, 7)
    m.store((34 << 21) + 0x9000, 8)
    pages = [9, (34 << 9) + 9]
    rows = ask(m, lambda mmu: mmu.lookup(pages))
    assert rows["mapped"].all()
    assert rows["hpa"][0] == rows["hpa"][1]
    assert (rows["rights"] & 3 == 3).all()
    assert ask(m, lambda mmu: mmu.clear_dirty([9, 100])).tolist() == [True, False]
    assert not ask(m, lambda mmu: mmu.lookup(pages))["dirty"].any()
    assert ask(m, lambda mmu: mmu.write_protect([9])).tolist() == [True]
    assert (ask(m, lambda mmu: mmu.lookup(pages))["rights"] & 2 == 0).all()
    m.store(0x9000, 9)
    assert ask(m, lambda mmu: mmu.zap([9, 1 << 30])).tolist() == [True, False]
    assert not ask(m, lambda mmu: mmu.lookup(pages))["mapped"].any()
    assert m.load((34 << 21) + 0x9000).value == 9
    check_reverse_maps(m)
    for call in (lambda mmu: mmu.map(1), lambda mmu: mmu.mark_mmio(1)):
        with pytest.raises(PolicyError, match="under shadow paging"):
            ask(m, call)


# ---- at random -----------------------------------------------------------------------------------------------------


def some(chance: random.Random) -> Any:
    first = chance.choice([5, 0x3F8, 0x400, chance.randrange(1 << 12), FAR, READ_ONLY])
    return chance.choice([first, range(first, first + chance.randrange(40)), [first, 3, first]])


def tasks(chance: random.Random, fields: dict[str, Any]) -> list[Callable[[Any], Any]]:
    pages, rights = some(chance), chance.choice([1, 5, 7, 7])
    found: list[Callable[[Any], Any]] = [
        lambda mmu: mmu.zap(pages),
        lambda mmu: mmu.lookup(pages),
        lambda mmu: mmu.write_protect(pages, restorable=chance.random() < 0.7),
        lambda mmu: mmu.zap(some(chance)),
    ]
    if fields.get("mmu") != "shadow":
        large = [page & ~511 for page in (pages if not isinstance(pages, int) else [pages])]
        found += [lambda mmu: mmu.map(pages, rights=rights), lambda mmu: mmu.map(large, level=2, rights=rights)]
    if fields.get("ept_ad", True):
        found.append(lambda mmu: mmu.clear_dirty(pages))
    return found


@pytest.mark.parametrize("fields", [*MACHINES, {"mmu": "shadow"}, {"mmu": "shadow", "kvm": "6.1", "host_pages": "2m"}])
@pytest.mark.parametrize("seed", range(3))
def test_a_guest_finds_what_it_stored(fields: dict[str, Any], seed: int) -> None:
    """Whatever is mapped and taken away meanwhile; and every entry stands in its list."""
    chance = random.Random(seed)
    m = machine(**fields)
    stored: dict[int, int] = {}
    logged = False
    for step in range(120):
        address = chance.choice([5, 0x3F9, 0x401, chance.randrange(8, 1 << 12)]) << 12  # behind the guest's tables
        address = chance.choice([address, address, AT_FAR + (chance.randrange(40) << 12)])
        kind = chance.randrange(5)
        if kind == 0:
            ask(m, chance.choice(tasks(chance, fields)))
        elif kind == 1:
            assert m.load(address).value == stored.get(address, 0)
        elif kind < 4:
            m.store(address, step + 1)
            stored[address] = step + 1
        elif not logged:
            m.vmm.start_dirty_log(0)
            logged = True
        elif chance.random() < 0.2:
            m.vmm.dirty_log(0)
    if not fields.get("host_memory"):
        check_reverse_maps(m)
    assert {address: m.load(address).value for address in stored} == stored
