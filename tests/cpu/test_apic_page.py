"""A bare guest's loads, stores, fetches and walks that meet the APIC-access page of the machine (apic.md §4)."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from fastmmu import Action, Config, Exit, GuestState, Machine, Policy, PolicyError, StateError
from fastmmu.ops import Op
from tests.support.apic_tables import EOI, ICR, SIZES, TPR, codes
from tests.support.tpr_ways import WAYS

SVR = 0xF0
PAGE, BEFORE, BEHIND = 0xC000_0000, 0xBFFF_F000, 0xC000_1000  # linear: the APIC's page between two of memory
LARGE = 0x8000_0000  # 2 MB from gpa FEE0_0000H on
VIRTUAL: list[dict[str, Any]] = [
    {"mmu": mmu, "tpr": tpr} for mmu in ("ept", "shadow") for tpr in ("flexpriority", "apicv")
]


def bare(policy: Policy | None = None, **config: Any) -> Machine:
    state = GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46)
    m = Machine(Config(memory="64M", **config), guest_kernel=False, state=state, policy=policy)
    tables = {
        0x1000: 0x2003,
        0x2000: 0x3003,
        0x3000: 0x83,
        0x2010: 0x6003,
        0x2018: 0x4003,
        0x6000 + 8 * 511: 0x7003,
        0x7000 + 8 * 511: 0x9003,
        0x4000: 0x5003,
        0x5000: 0xFEE0_001B,
        0x5008: 0x8003,
        0x6000: 0xFEE0_009B,
    }
    for address, entry in tables.items():
        m.guest_memory.u64[address >> 3] = entry
    m.apic.address = PAGE
    return m


def exits(m: Machine, name: str) -> int:
    found: int = m.counters()["exits_by_reason"].get(name, 0)
    return found


class Seen(Policy):
    """Notes the exits that the page causes, and leaves everything as it is."""

    def __init__(self, answer: Action = Action.EMULATED) -> None:
        self.exits: list[int] = []  # reason << 16 | qualification
        self.answer = answer

    def on_apic_access(self, machine: Machine, exit: Exit) -> Action:
        self.exits.append(exit.reason << 16 | exit.qualification)
        return self.answer

    def on_apic_write(self, machine: Machine, exit: Exit) -> Action:
        self.exits.append(exit.reason << 16 | exit.qualification)
        return self.answer


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


@pytest.mark.parametrize("mmu", ["native", "ept", "shadow"])
def test_in_memory_a_store_is_what_a_load_gets(mmu: str) -> None:
    """Any size and offset, over the end of a page too, and both halves or none."""
    chance = random.Random(5)
    state = GuestState(cr3=0x1000, cr4=0xA0, maxphyaddr=46)
    m = Machine(Config(memory="64M", mmu=mmu), guest_kernel=False, state=state)
    pages = [0x10_0000, 0x1F_0000, 0x20_0000, 0x15_0000]  # neither in order nor together
    for address, entry in {0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x4003}.items():
        m.guest_memory.write64(address, entry)
    for n, page in enumerate(pages):
        m.guest_memory.write64(0x4000 + 8 * n, page | 3)
    shadow = bytearray(0x4000)
    for _ in range(2000):
        size = chance.choice(SIZES)
        at = chance.choice([chance.randrange(0x4000 - size), 0x1000 * chance.randrange(1, 4) - chance.randrange(1, 17)])
        value = chance.getrandbits(8 * size)
        m.store(at, value, size)
        shadow[at : at + size] = value.to_bytes(size, "little")
        at = chance.randrange(0x4000 - 16)
        size = chance.choice(SIZES)
        assert m.load(at, size).value == int.from_bytes(shadow[at : at + size], "little")
    held = b"".join(bytes(m.guest_memory.u8[page : page + 0x1000]) for page in pages)
    assert held == bytes(shadow)
    assert m.store(0x3FFC, 1 << 63, 8) == (None, 2, 0x4000)
    assert m.load(0x3FFC, 4).value == int.from_bytes(shadow[0x3FFC:], "little")


# ---- behind translation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", VIRTUAL, ids=lambda config: "-".join(config.values()))
@pytest.mark.parametrize("backing", ["4k", "2m"])
def test_through_a_large_page_and_out_of_the_tlb(config: dict[str, Any], backing: str) -> None:
    """The guest's page has 2 MB, the VMM's for the APIC's page 4 KB; a hit in the TLB is compared as well."""
    m = bare(**config, host_pages=backing)
    assert m.store(LARGE + TPR, 0x50, 4).gpa == 0xFEE0_0080
    for la in (LARGE, PAGE):
        before = m.counters()
        for _ in range(5):
            assert m.load(la + TPR, 4).value == 0x50
            assert m.load(la + 0x390, 4).value == 0
        after = m.counters()
        assert exits(m, "apic_access") == before["exits_by_reason"].get("apic_access", 0) + 5
        assert after["l1d_hits"] >= before["l1d_hits"] + (0 if not m.config.vpid and config["mmu"] == "shadow" else 4)
    seen = m.counters()["mmio"]
    assert m.load(LARGE + 0x1000, 4) == (0xFEE0_1000, None, None, None)  # beside it there is nothing
    assert m.counters()["mmio"] == seen + 1
    assert m.apic.page[TPR] == 0x50


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_with_vpid_exits_leave_the_translation_cached(mmu: str) -> None:
    m = bare(mmu=mmu, tpr="flexpriority", vpid=True)
    m.load(PAGE + 0x20, 4)
    before = m.counters()
    for _ in range(10):
        m.load(PAGE + 0x20, 4)
    after = m.counters()
    assert exits(m, "apic_access") == 11
    assert after["l1d_hits"] == before["l1d_hits"] + 10
    assert after["walks"] == before["walks"]


def test_flags_are_set_and_the_write_is_logged_before_the_exit() -> None:
    """§4, priority: accessed and dirty flags of both stages come first."""
    m = bare(mmu="ept", tpr="flexpriority", pml=True, kvm="6.1")
    assert m.guest_memory.read64(0x5000) & 0x60 == 0
    m.load(PAGE + 0x20, 4)
    assert m.guest_memory.read64(0x5000) & 0x60 == 0x20
    m.store(PAGE + 0x20, 0, 4)
    assert m.guest_memory.read64(0x5000) & 0x60 == 0x60
    assert exits(m, "apic_access") == 2


# ---- page tables there ---------------------------------------------------------------------------------------

TABLE = PAGE + 0x20_0000  # its page table is the APIC's page


def with_table(policy: Policy | None = None, **config: Any) -> Machine:
    m = bare(policy, **config)
    m.guest_memory.write64(0x4008, 0xFEE0_0003)
    return m


@pytest.mark.parametrize("tpr", ["flexpriority", "apicv"])
@pytest.mark.parametrize("ad", [False, True])
def test_a_page_table_on_the_page_exits_and_kvm_finds_it_empty(tpr: str, ad: bool) -> None:
    """KVM walks the guest's tables itself, through the memory of the page, which holds zeros: #PF, not present."""
    m = with_table(mmu="ept", tpr=tpr, ept_ad=ad)
    for access, code in (("r", 0), ("w", 2), ("rw", 2), ("x", 16)):
        assert m.access(TABLE + 0x3123, access) == (None, code, TABLE + 0x3123)
        assert m.access(TABLE + 0x3123, access, user=True) == (None, code | 4, TABLE + 0x3123)
    assert exits(m, "apic_access") == 8
    assert m.counters()["guest_faults"] == 8
    assert m.counters()["apic_emulated"] == 0


def test_the_exit_tells_the_offset_and_kind_15() -> None:
    policy = Seen(Action.INJECT_PAGE_FAULT)
    m = with_table(policy, mmu="ept", tpr="flexpriority")
    for page in (0, 3, 511):
        m.access(TABLE + 0x1000 * page)
        assert policy.exits.pop() == 44 << 16 | 15 << 12 | 8 * page
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)  # memory now
    m.guest_memory.write64(0xA000, 0)
    assert m.access(TABLE)[1:3] == (0, TABLE)
    m.store(PAGE, 0xA003)
    assert m.store(TABLE + 8, 77).gpa == 0xA008
    assert m.load(TABLE + 8).value == 77
    assert policy.exits == []


def test_present_entries_there_stop_the_machine() -> None:
    m = with_table(mmu="ept", tpr="flexpriority")
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)
    m.store(PAGE, 0xA003)
    m.apic.wrmsr(0x1B, 0xFEE0_0900)
    assert m.access(TABLE + 0x1000)[1:3] == (0, TABLE + 0x1000)
    with pytest.raises(PolicyError, match="a paging structure for 0xc0200008 lies on the APIC-access page"):
        m.access(TABLE + 8)
    assert m.access(0).gpa == 0  # the machine is whole


def test_a_table_that_the_walk_caches_hold_is_recognised() -> None:
    """Mode changes flush nothing here; the exit comes all the same."""
    m = with_table(mmu="ept", tpr="flexpriority", vpid=True)
    m.apic.wrmsr(0x1B, 0xFEE0_0D00)
    m.store(PAGE, 0xA003)
    assert m.access(TABLE).gpa == 0xA000
    m.apic.wrmsr(0x1B, 0xFEE0_0900)
    assert m.access(TABLE + 0x1000)[1:3] == (0, TABLE + 0x1000)
    assert exits(m, "apic_access") == 1


def test_without_the_control_and_under_shadow_paging() -> None:
    """No guest-physical access to virtualize then; KVM's own walk finds no entry all the same."""
    for config in ({"mmu": "ept", "tpr": "trap"}, *({"mmu": "shadow", "tpr": t} for t in ("flexpriority", "trap"))):
        m = with_table(**config)
        for access, code in (("r", 0), ("w", 2), ("x", 16)):
            assert m.access(TABLE + 0x3123, access) == (None, code, TABLE + 0x3123)
        assert m.counters()["apic_emulated"] == 0


@pytest.mark.parametrize("tpr", ["flexpriority", "trap"])
def test_pdptes_on_the_page_are_loaded_by_the_vmm(tpr: str) -> None:
    """MOV to CR3 of a PAE guest reads them by guest-physical address; KVM emulates it, and finds four that are 0."""
    policy = Seen()
    for each in (None, policy):
        state = GuestState(cr0=0x8001_0033, cr4=0x20, efer=0, cr3=0x1000, maxphyaddr=46)
        m = Machine(Config(memory="64M", mmu="ept", tpr=tpr), guest_kernel=False, state=state, policy=each)
        m.guest_memory.write64(0x1000, 0x2001)
        m.guest_memory.write64(0x2000, 0x83)
        m.mov_cr3(0x1000)
        assert m.access(0x5000).gpa == 0x5000
        if tpr == "trap":
            with pytest.raises(StateError, match="PDPTE"):
                m.mov_cr3(0xFEE0_0020)
            assert m.access(0x5000).gpa == 0x5000
            continue
        m.mov_cr3(0xFEE0_0020)
        assert exits(m, "apic_access") == 1
        assert m.access(0x5000) == (None, 0, 0x5000)
        m.mov_cr3(0x1000)
        assert m.access(0x5000).gpa == 0x5000
    assert policy.exits == ([] if tpr == "trap" else [44 << 16 | 15 << 12 | 0x20])


# ---- handlers ------------------------------------------------------------------------------------------------


class Device(Policy):
    """Raises an interrupt from the handler of each exit of one kind."""

    def __init__(self, vector: int) -> None:
        self.vector = vector
        self.refused: list[str] = []

    def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
        return self._act(machine)

    def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
        return self._act(machine)

    def on_exception_nmi(self, machine: Machine, exit: Exit) -> Action:
        return self._act(machine)

    def on_apic_access(self, machine: Machine, exit: Exit) -> Action:
        return self._act(machine)

    def _act(self, machine: Machine) -> Action:
        apic = machine.apic
        assert apic is not None
        if self.vector:
            apic.interrupt(self.vector)
            for act in (
                lambda: apic.read(TPR),
                lambda: apic.write(TPR, 0),
                apic.read_cr8,
                lambda: apic.write_cr8(0),
                lambda: apic.rdmsr(0x808),
                lambda: apic.wrmsr(0x808, 0),
                lambda: apic.set_interrupts(False),
                lambda: machine.load(PAGE + TPR, 4),
                lambda: machine.store(PAGE + TPR, 0, 4),
            ):
                with pytest.raises(PolicyError, match="stands still while a VM exit is handled"):
                    act()
                self.refused.append("one")
        self.vector = 0
        return machine.default()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "native"])
def test_a_handler_posts_interrupts_and_runs_no_instruction(way: str) -> None:
    for cause in ("cpuid", "access", "page"):
        policy = Device(0)
        m = bare(policy, **WAYS[way])
        m.apic.write(SVR, 0x1FF)
        policy.vector = 0x51
        before = m.counters()
        if cause == "cpuid":
            m.exit_instruction(10)
        elif cause == "access":
            m.access(0x12_3456 if WAYS[way]["mmu"] == "ept" else 0x9_0000)
        else:
            m.load(PAGE + 0x390, 4)
        if not policy.refused:
            assert cause == "page" or cause == "access"
            continue
        assert [each.vector for each in m.apic.deliveries] == [0x51]
        after = m.counters()
        assert len(policy.refused) == 9
        assert after["apic_requested"] == before["apic_requested"] + 1
        assert exits(m, "external_interrupt") == 0


def test_an_interrupt_that_is_masked_waits() -> None:
    policy = Device(0)
    m = bare(policy, mmu="ept", tpr="flexpriority")
    m.apic.write(SVR, 0x1FF)
    m.store(PAGE + TPR, 0x60, 4)
    policy.vector = 0x51
    m.exit_instruction(10)
    assert m.apic.deliveries == []
    m.store(PAGE + TPR, 0x40, 4)
    assert [each.vector for each in m.apic.deliveries] == [0x51]
    assert exits(m, "tpr_below_threshold") == 1


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
@pytest.mark.parametrize("tpr", ["trap", "flexpriority", "apicv"])
def test_a_device_of_a_trace_interrupts_where_its_exit_was(mmu: str, tpr: str) -> None:
    """In a run too: after the access that exited, with the accesses counted until then."""
    policy = Device(0)
    m = Machine(Config(memory="256M", mmu=mmu, tpr=tpr), policy=policy)
    assert m.apic is not None
    m.apic.write(SVR, 0x1FF)
    policy.vector = 0x51
    addresses = np.array([0x40_0000, 0x40_0008, 0x50_0000, 0x60_0000], np.uint64)
    m.run(np.full(4, int(Op.READ), np.uint8), np.full(4, 8, np.uint8), addresses)
    assert [tuple(each) for each in m.apic.deliveries] == [(0x51, 1)]


def test_a_handler_that_only_retries_is_stopped() -> None:
    m = bare(Seen(Action.RETRY), mmu="ept", tpr="flexpriority")
    with pytest.raises(PolicyError, match="the access to 0xc0000020 exits again and again"):
        m.load(PAGE + 0x20, 4)
