"""Bare guests without paging, with 32-bit, PAE and 5-level paging: what the VMM makes for them, exit for exit.

That they come out as the architecture says, whatever they do: `machine/test_equivalence.py`, `test_properties.py`.
"""

from __future__ import annotations

from typing import Any

import pytest

from fastmmu import Action, BusError, Config, Exit, GuestState, Host, Machine, MemorySlot, Policy, StateError
from tests.support.event_lists import ALL_SCHEMES
from tests.support.vmm_tables import leaves

P, RW, US, A, D, PS, G, XD = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
ALL = P | RW | US | A | D
BIT32: dict[str, Any] = {"cr4": 0x10, "efer": 0x801}
PAE: dict[str, Any] = {"cr4": 0x20, "efer": 0x801}
FIVE: dict[str, Any] = {"cr4": 0x1020}
UNPAGED: dict[str, Any] = {"cr0": 0x11, "cr4": 0, "efer": 0}
ROOT, PD, PT, DATA, PD2 = 0x1000, 0x2000, 0x3000, 0x40_0000, 0x5000
GB, MB2, MB4 = 1 << 30, 1 << 21, 1 << 22
SHADOW = Config(memory="64M", mmu="shadow", vpid=True, kvm="6.1")
EPT = SHADOW.replace(mmu="ept")


@pytest.fixture(params=ALL_SCHEMES, ids=lambda config: config.name)
def config(request: pytest.FixtureRequest) -> Config:
    return request.param.replace(memory="64M")


def machine_of(config: Config, registers: dict[str, Any], memory: dict[int, int], **more: Any) -> Machine:
    state = GuestState(**{"cr3": ROOT, "maxphyaddr": 46, **registers})
    machine = Machine(config, guest_kernel=False, state=state, **more)
    words = machine.guest_memory.u64.view("<u4" if registers is BIT32 else "<u8")
    for at, entry in memory.items():
        words[at // words.itemsize] = entry
    return machine


def exits(machine: Machine) -> int:
    return int(machine.counters()["vm_exits"])


def vmm_tables(machine: Machine) -> int:
    return int(machine.counters()["vmm_tables"])


# PT is the page table of the first 4 MB; address 0 is DATA, 3000H the page table itself
PLAIN_32 = {ROOT: PT | ALL, PT: DATA | ALL, PT + 4 * 3: PT | ALL, PT + 4 * 512: (DATA + 0x1000) | ALL}
PLAIN_PAE = {ROOT: PD | P, PD: PT | ALL, PT: DATA | ALL, PT + 8 * 3: PT | ALL, PT + 8: ROOT | ALL}


# ---- every scheme ---------------------------------------------------------------------------------------------------


def test_addresses_have_32_bits(config: Config) -> None:
    for registers in (BIT32, PAE, UNPAGED):
        machine = machine_of(config, registers, {})
        for la in (1 << 32, 0xFFFF_FFFF_8000_0000):
            with pytest.raises(StateError, match=f"{la:#x} does not fit the 32 bits"):
                machine.access(la)
        with pytest.raises(StateError, match="cr3=0x100000000 has reserved bits"):
            machine.mov_cr3(1 << 32)


def test_invlpg_in_the_upper_half(config: Config) -> None:
    """80000000H is no canonical address of 32 bits, and an address all the same."""
    pde = ROOT + 4 * 512
    machine = machine_of(config, BIT32, {**PLAIN_32, pde: PT | ALL})
    assert machine.access(2 * GB).gpa == DATA
    machine.guest_memory.u64[pde >> 3] = 0
    machine.mov_cr3(ROOT) if config.mmu == "shadow" else machine.invlpg(2 * GB)
    if config.mmu != "shadow":
        assert machine.access(2 * GB).error_code == 0


def test_no_paging(config: Config) -> None:
    """Every address is itself, for everyone, and CR3, SMEP, SMAP and WP mean nothing."""
    machine = machine_of(config, {"cr0": 0x1_0011, "cr4": 3 << 20, "efer": 0}, {})
    for access in ("r", "w", "x", "rw"):
        for user in (False, True):
            assert machine.access(0x12_3456, access, user=user) == (0x12_3456, None, None)
    machine.mov_cr3(0xFFFF_F000)
    assert machine.store(0x12_3450, 5).gpa == 0x12_3450
    assert machine.guest_memory.read64(0x12_3450) == 5
    assert machine.counters()["guest_faults"] == 0


def test_pdpte_registers(config: Config) -> None:
    """Loaded at MOV to CR3 alone; a reserved bit in one that is present is #GP, and none changes."""
    machine = machine_of(config, PAE, {**PLAIN_PAE, PD2: PT | ALL})
    assert machine.access(0).gpa == DATA
    assert machine.access(GB) == (None, 0, GB)
    assert machine.store(0x1008, PD2 | P).gpa == ROOT + 8
    machine.invlpg(GB)
    assert machine.access(GB) == (None, 0, GB)
    machine.mov_cr3(ROOT | 0x18)  # bits 4:0 are ignored
    assert machine.access(GB).gpa == DATA
    assert machine.store(0x1008, PD2 | P | RW).gpa == ROOT + 8
    with pytest.raises(StateError, match="present PDPTE at CR3 has reserved bits"):
        machine.mov_cr3(ROOT)
    assert machine.access(GB + 0x1000).gpa == ROOT
    assert machine.store(0x1008, RW).gpa == ROOT + 8  # not present: not looked at
    machine.mov_cr3(ROOT)
    assert machine.access(GB) == (None, 0, GB)
    for _ in range(2):  # no memory there: KVM, which cannot read them, refuses the load
        with pytest.raises(BusError if config.mmu == "native" else StateError, match=r"PDPTE|paging structure"):
            machine.mov_cr3(0x8000_0000)


def test_a_pdpt_at_32_bytes(config: Config) -> None:
    machine = machine_of(config, {**PAE, "cr3": ROOT + 0x60}, {ROOT + 0x60 + 24: PD | P, PD: PT | ALL, PT: DATA | ALL})
    assert machine.access(3 * GB).gpa == DATA
    given = machine_of(config, {**PAE, "pdptes": (0, PD | P, 0, 0)}, PLAIN_PAE)
    assert given.access(GB).gpa == DATA  # the registers are given: memory is not asked
    assert given.access(0).error_code == 0


def test_bad_pdptes_from_the_start(config: Config) -> None:
    machine = machine_of(config, PAE, {ROOT: PD | P | RW})
    with pytest.raises(StateError, match="reserved bits"):
        machine.access(0)
    with pytest.raises(BusError, match="lie outside memory"):
        machine_of(config, {**PAE, "cr3": 0xF000_0000}, {}).access(0)


def test_five_levels(config: Config) -> None:
    pml4, pdpt = 0x6000, 0x7000
    memory = {ROOT + 8 * 300: pml4 | ALL, pml4: pdpt | ALL, pdpt: PD | ALL, PD: PT | ALL, PT: DATA | ALL}
    machine = machine_of(config, FIVE, memory)
    la = 0xFE << 56 | 0x12C << 48
    la = 300 << 48 | 0xFE << 56
    assert machine.access(la, "w", user=True).gpa == DATA
    assert machine.access(1 << 48) == (None, 0, 1 << 48)
    with pytest.raises(StateError, match="not canonical"):
        machine.access(1 << 57)
    assert machine.counters()["guest_walk_refs"] >= 5


def test_cr4_within_a_mode(config: Config) -> None:
    """PSE makes a page directory entry a 4 MB page, SMEP forbids a fetch, PGE loads the PDPTE registers."""
    machine = machine_of(config, {**BIT32, "cr4": 0}, {})
    words = machine.guest_memory.u64.view("<u4")
    words[ROOT >> 2], words[ROOT + 4 >> 2], words[0] = ALL | PS, DATA | ALL | PS, DATA | ALL
    assert machine.access(0x23).gpa == DATA | 0x23  # the page table is at 0
    machine.mov_cr4(0x10)
    machine.mov_cr3(ROOT)  # PSE flushes nothing
    assert machine.access(0x23).gpa == 0x23
    machine.mov_cr4(0)
    machine.mov_cr3(ROOT)
    assert machine.access(0x23).gpa == DATA | 0x23
    assert machine.access(0, "x").gpa == DATA
    machine.mov_cr4(1 << 20)
    assert machine.access(0, "x").error_code == 0x11
    machine = machine_of(config, PAE, PLAIN_PAE)
    machine.store(0x1008, PD | P) if machine.access(0).gpa else None
    machine.mov_cr4(0xA0)
    assert machine.access(GB).gpa == DATA
    machine.store(0x1008, PD | P | RW)
    with pytest.raises(StateError, match="reserved bits"):
        machine.mov_cr4(0x20)
    assert machine.state.cr4 == 0xA0
    assert machine.access(GB).gpa == DATA


def test_a_page_of_pse_36_above_4_gb() -> None:
    for config in (SHADOW, EPT):
        slot = MemorySlot(0x12_0000_0000, 4 << 20)
        machine = machine_of(config, BIT32, {ROOT + 4: 0x12 << 13 | ALL | PS}, slots=(slot,))
        assert machine.access(MB4 + 0x20_3004, "w").gpa == 0x12_0020_3004
        assert machine.counters()["mmio"] == 0


def test_a_legacy_guest_on_a_host() -> None:
    host = Host([SHADOW, EPT], guest_kernel=False, state=GuestState(cr3=ROOT, **BIT32))
    for vcpu in (0, 1, 0, 1):
        machine = host.place(vcpu, 0)
        words = machine.guest_memory.u64.view("<u4")
        words[ROOT >> 2], words[PT >> 2] = PT | ALL, DATA | ALL
        assert machine.access(0).gpa == DATA


# ---- VM entries -----------------------------------------------------------------------------------------------------


def test_controls_of_vm_entry() -> None:
    """IA-32e mode guest is on in long mode alone; over EPT, unrestricted guest as the processor has it."""
    for config in (SHADOW, EPT):
        for registers, long_mode in ((BIT32, 0), (PAE, 0), (UNPAGED, 0), (FIVE, 1), ({}, 1)):
            vmcs = machine_of(config, registers, {}).vmcs
            assert vmcs["vm_entry"] >> 9 & 1 == long_mode
            assert vmcs["secondary"] >> 7 & 1 == (config.mmu == "ept")


# ---- over EPT -------------------------------------------------------------------------------------------------------


class Violations(Policy):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
        self.seen.append((exit.guest_physical, exit.qualification))
        return machine.default()


def test_the_load_of_pdptes_goes_through_the_ept() -> None:
    """A read that translates no linear address: bits 7 and 8 of the qualification are 0; once a page."""
    policy = Violations()
    machine = machine_of(EPT, PAE, {**PLAIN_PAE, 0x9000: PD | P}, policy=policy)
    assert machine.access(0).gpa == DATA
    assert [gpa for gpa, _ in policy.seen] == [PD, PT, DATA]  # the VMM read the first PDPTEs
    policy.seen.clear()
    machine.mov_cr3(0x9000)
    assert policy.seen == [(0x9000, 1)]
    machine.mov_cr3(0x9000)
    machine.mov_cr3(0x9020)
    assert len(policy.seen) == 1


def test_no_paging_over_ept_is_one_exit_a_page() -> None:
    for host_pages, size in (("4k", 4096), ("2m", MB2)):
        machine = machine_of(EPT.replace(host_pages=host_pages), UNPAGED, {})
        for i in range(3):
            for offset in (0, 8, size - 8):
                machine.access(i * size + offset, "w")
        assert exits(machine) == 3


# ---- shadow paging --------------------------------------------------------------------------------------------------


def test_quadrants() -> None:
    """A page directory has four shadows, made with the root; a page table has one for each 2 MB that are used."""
    machine = machine_of(SHADOW, BIT32, {**PLAIN_32, ROOT + 4: PT | ALL, ROOT + 4 * 768: PT | ALL})
    assert vmm_tables(machine) == 4
    for la, gpa, tables in (
        (0, DATA, 5),
        (MB2, DATA + 0x1000, 6),
        (MB4, DATA, 6),  # the same page table, the same rights: the same shadows
        (MB4 + MB2, DATA + 0x1000, 6),
        (3 * GB, DATA, 6),
    ):
        assert machine.access(la).gpa == gpa
        assert vmm_tables(machine) == tables
    assert {leaf.address for leaf in leaves(machine)} >= {0, MB2, MB4, MB4 + MB2, 3 * GB}


def test_the_second_half_of_a_page_table() -> None:
    """Fetched ahead and brought in sync from its own entries: 512 and up."""
    memory = {**PLAIN_32, PT + 4 * 513: 0x7000 | ALL, PT + 4 * 514: 0x8000 | ALL, PT + 4: PT | ALL}
    machine = machine_of(SHADOW, BIT32, memory)
    assert machine.access(MB2).gpa == DATA + 0x1000
    before = exits(machine)
    assert machine.access(MB2 + 0x1000).gpa == 0x7000
    assert exits(machine) == before
    assert machine.store(0x1000 + 4 * 514, DATA | ALL, 4).gpa == PT + 4 * 514  # out of sync from here on
    machine.mov_cr3(ROOT)
    before = exits(machine)
    assert machine.access(MB2 + 0x1000, "w").gpa == 0x7000
    assert exits(machine) == before
    assert machine.access(MB2 + 0x2000).gpa == DATA


def test_a_page_of_4_mb_is_two_of_2_mb() -> None:
    machine = machine_of(SHADOW.replace(host_pages="2m"), BIT32, {ROOT + 4: DATA | ALL | PS})
    for la in (MB4, MB4 + 0x5000, MB4 + MB2 - 1):
        assert machine.access(la, "w").gpa == la - MB4 + DATA
    assert exits(machine) == 1
    assert machine.access(MB4 + MB2).gpa == DATA + MB2
    assert exits(machine) == 2
    assert [(leaf.address, leaf.size, leaf.gpa) for leaf in leaves(machine)] == [
        (MB4, MB2, DATA),
        (MB4 + MB2, MB2, DATA + MB2),
    ]
    assert vmm_tables(machine) == 4


def test_a_page_of_4_mb_in_small_pages() -> None:
    """Direct shadow pages of its halves; neighbours of a fault are mapped with it, to the end of an aligned eight."""
    machine = machine_of(SHADOW, BIT32, {ROOT + 4: DATA | ALL | PS})
    assert machine.access(MB4 + 0x1FF000).gpa == DATA + 0x1FF000
    assert machine.access(MB4 + MB2).gpa == DATA + MB2
    assert vmm_tables(machine) == 6
    assert [leaf.address for leaf in leaves(machine)] == [
        MB4 + 0x1000 * i for i in (*range(0x1F8, 0x200), *range(0x200, 0x208))
    ]


@pytest.mark.parametrize("unsync", [False, True])
def test_a_store_of_4_bytes_drops_what_it_changed(unsync: bool) -> None:
    """One entry of a page table, two of a page directory; of the other quadrants nothing (kvm_policy.md §2.2)."""
    memory = {**PLAIN_32, ROOT + 4: DATA | ALL | PS, PT + 4 * 4: ROOT | ALL, PT + 4: 0x7000 | ALL}
    config = SHADOW.replace(host_pages="2m", unsync=unsync)
    machine = machine_of(config, BIT32, memory)
    for la in (0, MB2, MB4, MB4 + MB2, 0x3000, 0x4000):
        machine.access(la)
    small = {0, 0x1000, 0x3000, 0x4000, MB2}
    assert {leaf.address for leaf in leaves(machine)} == small | {MB4, MB4 + MB2}
    assert machine.store(0x4004, 0, 4).gpa == ROOT + 4
    assert {leaf.address for leaf in leaves(machine)} == small
    assert machine.vmm.counters()["pte_writes"] == 1
    assert machine.store(0x3004, 0x8000 | ALL, 4).gpa == PT + 4
    assert machine.vmm.counters()["pte_writes"] == (1 if unsync else 2)
    if not unsync:
        assert {leaf.address for leaf in leaves(machine)} == small - {0x1000}
    machine.invlpg(0x1000)
    assert machine.access(0x1000).gpa == 0x8000
    assert machine.vmm.counters()["flooded"] == 0


def test_a_store_of_8_bytes_is_two_entries() -> None:
    """Within no entry of 4 bytes: all shadows of the table go (kvm_policy.md §2.2)."""
    machine = machine_of(SHADOW, BIT32, {**PLAIN_32, PT + 4 * 4: ROOT | ALL})
    assert [machine.access(la).gpa for la in (0, MB2, 0x4000)] == [DATA, DATA + 0x1000, ROOT]
    assert machine.store(0x4008, 0).gpa == ROOT + 8
    assert machine.vmm.counters()["flooded"] == 4
    assert [leaf.address for leaf in leaves(machine)] == []
    assert machine.access(0).gpa == DATA


def test_stores_of_4_bytes_without_use_are_a_flood() -> None:
    """The third zaps each shadow of the page directory; an access through one in between begins the count anew."""
    machine = machine_of(SHADOW, BIT32, {**PLAIN_32, PT + 4 * 4: ROOT | ALL})
    machine.access(0x4000)
    flooded = []
    for i in range(3):
        machine.store(0x4010 + 4 * i, 0, 4)
        flooded.append(machine.vmm.counters()["flooded"])
    # each store is a fault that walks through quadrant 0, whose count begins anew with it
    assert flooded == [0, 0, 3]


def test_halves_of_an_entry_of_8_bytes() -> None:
    """A PAE guest writes an entry in two stores: each drops it, none is misaligned."""
    machine = machine_of(SHADOW.replace(unsync=False), PAE, PLAIN_PAE)
    machine.access(0x3000)
    for at in (0x3000, 0x3004):
        assert machine.access(0).gpa == DATA
        assert machine.store(at, 0, 4).gpa == PT + at - 0x3000
        assert 0 not in {leaf.address for leaf in leaves(machine)}
        machine.guest_memory.u64[PT >> 3] = DATA | ALL
    assert machine.vmm.counters()["flooded"] == 0


def test_shadows_of_a_pae_guest() -> None:
    """One for each page directory in use; the PDPT has none, and writes to it go unseen."""
    machine = machine_of(SHADOW, PAE, {**PLAIN_PAE, ROOT + 16: PD | P, PD2: PT | ALL})
    assert machine.access(0).gpa == DATA
    assert vmm_tables(machine) == 2  # the page directory, of two PDPTEs, and its page table
    assert machine.access(2 * GB).gpa == DATA
    assert vmm_tables(machine) == 2
    machine.store(0x1008, PD2 | P)
    before = exits(machine)
    machine.store(0x1000, PD2 | P)
    assert exits(machine) == before
    machine.mov_cr3(ROOT)
    assert exits(machine) == before + 1
    assert machine.access(0).gpa == machine.access(GB).gpa == DATA
    assert vmm_tables(machine) == 3
    # back: the page directory that no PDPTE leads to is still there
    made = machine.counters()["vmm_tables_made"]
    for pd in (PD, PD2, PD):
        machine.store(0x1000, pd | P)
        machine.mov_cr3(ROOT)
        assert machine.access(0).gpa == DATA
    assert machine.counters()["vmm_tables_made"] == made


def test_shadows_of_a_guest_without_paging() -> None:
    for host_pages, tables in (("2m", 4), ("4k", 5)):
        machine = machine_of(SHADOW.replace(host_pages=host_pages), UNPAGED, {})
        assert vmm_tables(machine) == 4
        machine.access(0x12_3000, "w")
        assert (exits(machine), vmm_tables(machine)) == (1, tables)
        for leaf in leaves(machine):
            assert (leaf.gpa, leaf.w, leaf.x, leaf.user) == (leaf.address, 1, 1, 1)
        machine.mov_cr3(0x5000)
        assert vmm_tables(machine) == tables  # the roots are those of no CR3
