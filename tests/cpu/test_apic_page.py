"""A bare guest's loads, stores and fetches that meet the APIC-access page of the machine (apic.md §4)."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from fastmmu import Action
from tests.support.apic_guest import BEHIND, PAGE, SVR, VIRTUAL, Seen, bare, exits
from tests.support.apic_tables import EOI, ICR, SIZES, TPR, codes
from tests.support.tpr_ways import WAYS

# ---- every access against the tables -------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_every_access_of_every_size_at_every_offset(mmu: str) -> None:
    """What the machine's processor does is what the tables say, in each configuration that a machine has."""
    checked = 0
    for tpr in ("flexpriority", "apicv"):
        more = tpr == "apicv"
        for access, size in [*itertools.product(("r", "w", "rw"), SIZES), ("x", 1)]:
            policy = Seen()
            m = bare(policy, mmu=mmu, tpr=tpr)
            want = codes(access, size, shadow=True, registers=more, delivery=more).tolist()
            got, came = [], []
            for offset in range(4096):
                came.append(m.access(PAGE + offset, access, size=size).gpa)
                got.append(policy.exits.pop() if policy.exits else 0)
            assert got == want, (tpr, access, size)
            assert came == [None if exit >> 16 == 44 else 0xFEE0_0000 + at for at, exit in enumerate(want)]
            assert not policy.exits
            checked += 4096
    print(f"{checked} accesses under {mmu}")
    assert checked == 2 * 16 * 4096


@pytest.mark.parametrize("config", VIRTUAL, ids=lambda config: "-".join(config.values()))
def test_in_x2apic_mode_the_page_is_memory(config: dict[str, Any]) -> None:
    policy = Seen()
    m = bare(policy, **config)
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)
    before = m.apic.page
    for offset, size in itertools.product((0, 7, TPR, TPR + 2, EOI, ICR, 0xFF0), SIZES):
        value = random.Random(offset).getrandbits(8 * size)
        assert m.store(PAGE + offset, value, size).gpa == 0xFEE0_0000 + offset
        assert m.load(PAGE + offset, size).value == value
        for access in ("r", "w", "rw", "x"):
            assert m.access(PAGE + offset, access, size=size).gpa == 0xFEE0_0000 + offset
    assert (policy.exits, m.apic.page, m.counters()["apic_emulated"]) == ([], before, 1)


# ---- loads and stores are the instructions behind machine.apic -----------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_loads_and_stores_do_what_the_port_does(way: str) -> None:
    """Values, registers, interrupts, counters: random programs on two machines, one by Machine.apic."""
    chance = random.Random(way)
    offsets = [TPR, TPR, EOI, SVR, ICR, 0x20, 0x30, 0xA0, 0x100, 0x310, 0x320, 0x390, 0x3F0, 0x400, 0x81, 0x84, 0xFF8]
    for handler in ("eoi", "irql"):
        config = {**WAYS[way], "guest_handler": handler}
        if config.get("tpr_patch") == "one-vcpu" and config["mmu"] == "shadow":
            continue
        port, plain = bare(**config), bare(**config)
        for m in (port, plain):
            m.apic.write(SVR, 0x1FF)
        for _ in range(150):
            offset, size = chance.choice(offsets), chance.choice((1, 2, 4, 4, 4, 4, 8, 16))
            size = min(size, 4096 - offset)
            value = chance.choice([0, 0x50, 0xF0, 0x4_0061, chance.getrandbits(32)]) & (1 << 8 * min(size, 8)) - 1
            kind = chance.randrange(4)
            if kind == 0:
                read = plain.load(PAGE + offset, size).value
                assert (read or 0) & 0xFFFF_FFFF_FFFF_FFFF == port.apic.read(offset, size)
            elif kind == 1:
                vector = chance.randrange(16, 256)
                for m in (port, plain):
                    m.apic.interrupt(vector)
            elif offset != SVR:
                assert plain.store(PAGE + offset, value, size).gpa == 0xFEE0_0000 | offset
                port.apic.write(offset, value, size)
            assert plain.apic.page == port.apic.page
            assert plain.apic.deliveries == port.apic.deliveries
        assert plain.counters() == port.counters()
        assert len(plain.apic.deliveries) > 10


@pytest.mark.parametrize("way", WAYS)
def test_a_guest_reads_back_what_it_wrote(way: str) -> None:
    m = bare(**WAYS[way])
    assert m.store(PAGE + TPR, 0x5A, 4) == (0xFEE0_0080, None, None)
    assert m.load(PAGE + TPR, 4) == (0xFEE0_0080, None, None, 0x5A)
    assert m.load(PAGE + TPR, 1).value == 0x5A
    assert (m.apic.read_cr8(), m.apic.page[TPR]) == (5, 0x5A)
    assert m.access(PAGE + TPR, "rw", size=4).gpa == 0xFEE0_0080
    assert m.load(PAGE + TPR, 4).value == 0x5A  # put back
    m.access(PAGE + TPR, "w", size=4)
    assert m.load(PAGE + TPR, 4).value == 0
    counters = m.counters()
    assert [counters["apic_" + name] for name in ("reads", "writes", "tpr_reads", "tpr_writes")] == [6, 3, 6, 3]


@pytest.mark.parametrize("config", VIRTUAL, ids=lambda config: "-".join(config.values()))
def test_an_interrupt_to_itself_by_a_store(config: dict[str, Any]) -> None:
    """The processor does it where it delivers interrupts; else the VMM, at an exit."""
    m = bare(**config)
    m.store(PAGE + SVR, 0x1FF, 4)
    before = exits(m, "apic_access")
    m.store(PAGE + ICR, 0x4_0061, 4)
    assert [each.vector for each in m.apic.deliveries] == [0x61]
    counters, virtual = m.counters(), config["tpr"] == "apicv"
    assert [counters["apic_" + name] for name in ("requested", "ipis", "ipis_virtualized")] == [1, 1, int(virtual)]
    assert exits(m, "apic_access") == before + (0 if virtual else 2)  # ICR, and the end of interrupt of the handler


@pytest.mark.parametrize("way", [way for way in WAYS if way != "native"])
def test_user_accesses_fault_before(way: str) -> None:
    m = bare(**WAYS[way])
    assert m.load(PAGE + TPR, 4, user=True) == (None, 5, PAGE + TPR, None)
    assert m.store(PAGE + TPR, 0x50, 4, user=True) == (None, 7, PAGE + TPR)
    assert (m.apic.page[TPR], m.counters()["apic_emulated"]) == (0, 0)


# ---- what KVM does at the exit -------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
@pytest.mark.parametrize("size", SIZES)
def test_an_end_of_interrupt_may_be_of_any_size(mmu: str, size: int) -> None:
    """handle_apic_access looks at offset and kind alone; what it emulates must be of 32 bits."""
    m = bare(mmu=mmu, tpr="flexpriority")
    m.apic.write(SVR, 0x1FF)
    in_service = m.memory.u8[m.vmcs["virtual_apic_address"] + 0x120 :]
    in_service[0] = 1 << 1  # vector 41H
    before = m.counters()["apic_emulated"]
    m.store(PAGE + EOI, 0, size)
    assert (in_service[0], m.counters()["apic_emulated"], exits(m, "apic_access")) == (0, before + 1, 2)
    m.store(PAGE + 0x320, 0x41, size)
    assert m.load(PAGE + 0x320, 4).value == (0x41 if size == 4 else 0x1_0000)
    assert m.counters()["apic_emulated"] == before + 3


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
@pytest.mark.parametrize("tpr", ["trap", "flexpriority", "apicv"])
def test_a_fetch_is_no_access_to_a_register(mmu: str, tpr: str) -> None:
    """KVM decodes what the page's memory holds; no register is read (x86_decode_insn)."""
    m = bare(mmu=mmu, tpr=tpr)
    m.apic.write(TPR, 0x50)
    before = m.counters()["apic_emulated"]
    for offset in (0, TPR, 0x30):
        assert m.access(PAGE + offset, "x").gpa == 0xFEE0_0000 + offset
    assert m.counters()["apic_emulated"] == before
    if tpr != "trap":
        assert exits(m, "apic_access") == 3


def test_a_modification_that_exits_reads_and_writes() -> None:
    for way in ("trap", "flexpriority", "trap, shadow paging"):
        m = bare(**WAYS[way])
        m.apic.write(SVR, 0x1FF)
        before = m.counters()["apic_emulated"]
        m.access(PAGE + SVR, "rw", size=4)
        assert m.load(PAGE + SVR, 4).value == 0x1FF
        assert m.counters()["apic_emulated"] == before + 3


# ---- two pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", VIRTUAL, ids=lambda config: "-".join(config.values()))
def test_an_access_that_crosses_exits_with_the_first_offset_on_the_page(config: dict[str, Any]) -> None:
    policy = Seen()
    m = bare(policy, **config)
    for size in SIZES[1:]:
        for short in range(1, size):
            for access, kind in (("r", 0), ("w", 1), ("rw", 1)):
                assert m.access(PAGE - short, access, size=size).gpa == 0xA000 - short
                assert policy.exits.pop() == 44 << 16 | kind << 12
                assert m.access(BEHIND - short, access, size=size).gpa is None
                assert policy.exits.pop() == 44 << 16 | kind << 12 | 0x1000 - short
    assert policy.exits == []


@pytest.mark.parametrize("config", VIRTUAL, ids=lambda config: "-".join(config.values()))
def test_the_part_in_memory_is_stored_when_the_exit_is_over(config: dict[str, Any]) -> None:
    for answer, stored in ((Action.EMULATED, True), (Action.INJECT_PAGE_FAULT, False)):
        m = bare(Seen(answer), **config)
        m.guest_memory.write64(0x9FF8, 0)
        m.guest_memory.write64(0x8000, 0)
        m.store(PAGE - 3, 0x1122_3344_5566_7788, 8)
        assert m.guest_memory.read64(0x9FF8) == (0x66_7788 << 40 if stored else 0)
        m.store(BEHIND - 3, 0x1122_3344_5566_7788, 8)
        assert m.guest_memory.read64(0x8000) == (0x11_2233_4455 if stored else 0)
    m = bare(**config)
    before = m.apic.page
    m.guest_memory.write64(0x9FF8, 0x0102_0304_0506_0708)
    assert m.load(PAGE - 3, 4).value == 0x01_0203  # register 0 does not exist: 0
    m.store(PAGE - 4, 0x61_0004_0000, 8)
    assert m.apic.page[:0x280] == before[:0x280]
    assert exits(m, "apic_access") == 2
