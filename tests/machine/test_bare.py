"""The bare guest: what it may not do, and outcomes besides success and #PF."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmmu import BusError, Config, ConfigError, GuestState, Machine, StateError, TraceError, reference
from tests.support.event_lists import ALL_SCHEMES

P, RW, US, A, D = 1, 2, 4, 0x20, 0x40
ALL = P | RW | US | A | D
ROOT, PDPT, PD, PT, DATA = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
MEMORY = 64 << 20


@pytest.fixture(params=ALL_SCHEMES, ids=lambda config: config.name)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param.replace(memory=MEMORY)


def bare(config: Config, pte: int = DATA | ALL, **registers: Any) -> Machine:
    """A guest whose address 0 is DATA, or what `pte` says."""
    machine = Machine(config, guest_kernel=False, state=GuestState(**{"cr3": ROOT, **registers}))
    for table, entry in ((ROOT, PDPT | ALL), (PDPT, PD | ALL), (PD, PT | ALL), (PT, pte)):
        machine.guest_memory.write64(table, entry)
    return machine


def test_addresses_that_are_not_canonical(config: Config) -> None:
    """Refused, also where the TLB has an entry that agrees in bits 56:12, and INVLPG of one does nothing."""
    machine = bare(config)
    assert machine.access(0, "rw").gpa == DATA
    misses = machine.counters()["tlb_misses"]
    for la in (1 << 63, 1 << 57, 1 << 47, 0xFFFF_7FFF_FFFF_F000):
        for access in (lambda la=la: machine.access(la), lambda la=la: machine.store(la, 0)):
            with pytest.raises(StateError, match=f"{la:#x} is not canonical"):
                access()
        machine.invlpg(la)
    assert machine.access(0).gpa == DATA
    if config.vpid or config.mmu != "shadow":  # else the exits of INVLPG have flushed
        assert machine.counters()["tlb_misses"] == misses


def test_wrong_arguments(config: Config) -> None:
    machine = bare(config)
    for size in (0, 3, 5, 32, 1 << 31):
        for access in (machine.load, lambda la, size: machine.store(la, 0, size)):
            with pytest.raises(StateError, match=f"an access of {size} bytes; give 1, 2, 4, 8 or 16"):
                access(8, size)
    for size in (1, 2, 4, 8, 16):
        for value in (-1, 1 << 8 * size):
            with pytest.raises(StateError, match=f"does not fit a store of {size} bytes"):
                machine.store(8, value, size)
    with pytest.raises(TypeError):
        machine.store(8, 1.5)
    with pytest.raises(StateError, match="0x800000000000 is not canonical"):
        machine.load(0x7FFF_FFFF_FFF9, 8)
    with pytest.raises(StateError, match='must be "r", "w", "rw" or "x"'):
        machine.access(0, "z")
    with pytest.raises(StateError, match=r"cr3=0x8000000000001000 has reserved bits 0x8000000000000000"):
        machine.mov_cr3(1 << 63 | ROOT)
    with pytest.raises(StateError, match="reserved bits"):
        bare(config, maxphyaddr=40).mov_cr3(1 << 40)
    with pytest.raises(ConfigError, match="a bare guest has no kernel to run a trace on"):
        machine.run(np.zeros(1, np.uint8), np.zeros(1, np.uint8), np.zeros(1, np.uint64))
    with pytest.raises(TraceError, match="different lengths: 1, 2, 1"):
        machine.run(np.zeros(1, np.uint8), np.zeros(2, np.uint8), np.zeros(1, np.uint64))
    assert machine.access(0).gpa == DATA


def test_a_store_of_four_bytes_leaves_the_other_half(config: Config) -> None:
    """Also one that the VMM emulates: PT shadowed, at 1000H as data."""
    machine = bare(config)
    machine.guest_memory.write64(PT + 8, PT | ALL)
    machine.guest_memory.write64(DATA + 8, 0x1111_2222_3333_4444)
    assert machine.store(0x8, 0x5555_6666, 4).gpa == DATA + 8
    assert machine.store(0xC, 0x7777_8888, size=4).gpa == DATA + 12
    assert machine.guest_memory.read64(DATA + 8) == 0x7777_8888_5555_6666
    assert machine.store(0x1010, 0x2000 | ALL, 4).gpa == PT + 16
    assert machine.store(0x1014, 1 << 31, 4).gpa == PT + 20
    assert machine.guest_memory.read64(PT + 16) == 1 << 63 | 0x2000 | ALL
    assert machine.access(0x2000).gpa == 0x2000
    assert machine.access(0x2000, "x").error_code == 0x11


def test_what_a_bare_guest_cannot_be(config: Config) -> None:
    with pytest.raises(ConfigError, match="no kernel"):
        Machine(config.replace(premapped=True), guest_kernel=False)
    machine = bare(config)
    with pytest.raises(StateError, match="LA57"):
        machine.mov_cr4(0x10A0)


def test_vm_entry_checks_the_guest_state(config: Config) -> None:
    """Bit 63 belongs to the operand of MOV to CR3, no CR3 holds it: G3. Shadow paging enters with a root of its own."""
    pcide = {"cr4": 0x200A0, "cr3": ROOT | 5}
    entered = bare(config, **pcide)
    if config.mmu != "native":
        assert entered.vmcs["vm_entry"] & 1 << 9  # IA-32e mode guest
    assert entered.access(0).gpa == DATA
    if config.mmu != "ept":
        assert bare(config, **{**pcide, "cr3": 1 << 63 | ROOT | 5}).access(0).gpa == DATA
        return
    known = reference.vmentry.EntryFields.__dataclass_fields__
    fields = {name: value for name, value in entered.vmcs.items() if name in known}
    fields |= {"guest_cr0": 0x8000_0021, "guest_cr3": 1 << 63 | ROOT | 5, "guest_cr4": 0x2_20A0}
    failed = reference.vmentry.enter(reference.vmentry.EntryFields(**fields), vtpr=0)
    assert isinstance(failed, reference.vmentry.EntryExit)
    found = f"exit reason {failed.reason:#x}, qualification {failed.qualification}: .* cr3=0x8000000000001005"
    with pytest.raises(StateError, match=found):
        bare(config, **{**pcide, "cr3": 1 << 63 | ROOT | 5})


def test_tables_outside_memory(config: Config) -> None:
    """Natively a bus error. To KVM, which walks the guest's tables where it emulates or shadows, their entries are not
    present; each time, though the address is marked as MMIO by then."""
    for table in (ROOT, PDPT, PD):
        machine = bare(config)
        machine.guest_memory.write64(table, MEMORY | ALL)
        for access, user, code in (("r", False, 0), ("w", False, 2), ("rw", True, 6), ("x", True, 0x14)):
            if config.mmu == "native":
                with pytest.raises(BusError, match="lies outside memory"):
                    machine.access(0x123, access, user=user)
            else:
                assert machine.access(0x123, access, user=user) == (None, code, 0x123)
        machine.guest_memory.write64(table, {ROOT: PDPT, PDPT: PD, PD: PT}[table] | ALL)
        assert machine.access(0).gpa == DATA
        counters = machine.counters()
        assert counters["mmio"] == 0
        assert counters["guest_faults"] == (0 if config.mmu == "native" else 4)


def test_a_root_outside_memory(config: Config) -> None:
    """Under shadow paging KVM ends the guest by a triple fault; over EPT the guest goes on, and no table is there."""
    machine = bare(config)
    if config.mmu == "ept":
        machine.mov_cr3(MEMORY)
        assert machine.access(0, "w") == (None, 2, 0)
    else:
        with pytest.raises(BusError, match="lies outside memory" + ": a triple fault" * (config.mmu == "shadow")):
            (machine.mov_cr3(MEMORY), machine.access(0))
    machine.mov_cr3(ROOT)
    assert machine.access(0).gpa == DATA


def test_a_root_outside_memory_from_the_start(config: Config) -> None:
    if config.mmu == "ept":
        assert bare(config, cr3=MEMORY).access(0) == (None, 0, 0)
        return
    with pytest.raises(BusError, match="lies outside memory"):
        bare(config, cr3=MEMORY).access(0)


def test_data_outside_memory_is_mmio(config: Config) -> None:
    """The access has its guest-physical address; the VMM emulates it each time."""
    machine = bare(config, MEMORY | ALL)
    for access in ("r", "w", "x"):
        assert machine.access(0x18, access).gpa == MEMORY | 0x18
    assert machine.store(0x20, 1).gpa == MEMORY | 0x20
    assert machine.counters()["mmio"] == (0 if config.mmu == "native" else 4)


def test_protection_keys(config: Config) -> None:
    """A key that denies writes, then one that denies all: with the page cached by an access that it allows."""
    registers = {"cr4": 0x40_00A0, "pkru": 0b1110 << 2}  # key 1: write disabled; key 2: both
    if config.mmu == "shadow":
        with pytest.raises(ConfigError, match="shadow paging does not virtualize protection keys"):
            bare(config, **registers)
        config = config.replace(shadow_keys=True)
    for key, user in ((1, True), (1, False), (2, True), (2, False)):
        machine = bare(config, DATA | ALL | key << 59, **registers)
        memory = reference.ArrayMemory(machine.guest_memory.u64)
        state = reference.State(**registers, cr3=ROOT, cpl=3 if user else 0)
        for access in ("x", "r", "w", "r", "rw"):
            came = machine.access(0, access, user=user)
            outcome = reference.walk(memory, state, 0, access, write=False)
            if isinstance(outcome, reference.PageFault):
                assert came == (None, outcome.error_code, 0)
            else:
                assert isinstance(outcome, reference.Mapped)
                assert came.gpa == outcome.gpa


def test_protection_keys_without_write_protection(config: Config) -> None:
    if config.mmu == "shadow":
        config = config.replace(shadow_keys=True)
    machine = bare(config, DATA | ALL & ~RW | 1 << 59, cr0=0x8004_0033, cr4=0x40_00A0, pkru=0b10 << 2)
    assert machine.access(0, "r").gpa == DATA
    assert machine.access(0, "w").gpa == DATA
    assert machine.access(0, "w", user=True) == (None, 0x27, 0)


def test_a_page_gets_another_key(config: Config) -> None:
    """The key in a cached translation goes with the entry that gave it."""
    if config.mmu == "shadow":
        config = config.replace(shadow_keys=True)
    machine = bare(config, DATA | ALL | 1 << 59, cr4=0x40_00A0, pkru=0b11 << 4)  # key 2: no access
    machine.guest_memory.write64(PT + 8, PT | ALL & ~US)
    assert machine.access(0, "w", user=True).gpa == DATA
    assert machine.store(0x1000, DATA | ALL | 2 << 59).gpa == PT
    machine.invlpg(0)
    assert machine.access(0, "r", user=True) == (None, 0x25, 0)


def test_counters_of_a_bare_guest(config: Config) -> None:
    machine = bare(config)
    for access in ("r", "w", "rw", "x", "r"):
        machine.access(0, access)
    machine.store(8, 1)
    c = machine.counters()
    assert [c[name] for name in ("reads", "writes", "modifies", "fetches", "kernel_accesses")] == [2, 1, 1, 1, 1]
    lookups = c["accesses"] + c["kernel_accesses"] + c["retries"]
    assert c["l1d_hits"] + c["l1i_hits"] + c["stlb_hits"] + c["tlb_misses"] == lookups
    assert machine.guest_memory.read64(DATA + 8) == 1
