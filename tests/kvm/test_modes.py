"""Changes of paging mode: the machine against the specification, register write by register write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmmu import Action, BusError, Config, ConfigError, GuestState, Host, Machine, Policy, StateError, reference
from fastmmu.exits import Exit, ExitReason
from fastmmu.reference.kvm import modes
from fastmmu.reference.kvm.modes import Refused, Registers, Scheme
from tests.support.vmm_tables import guest_memory_at

MEMORY = 64 << 20
TOP, TABLES = 0x10000, (0x10000, 0x11000, 0x12000, 0x12020)  # every table is good for some modes
CONFIGS = {
    Scheme.NATIVE: Config(memory=MEMORY),
    Scheme.EPT: Config(memory=MEMORY, mmu="ept", vpid=True),
    Scheme.UNRESTRICTED: Config(memory=MEMORY, mmu="ept", kvm="6.1"),
    Scheme.SHADOW: Config(memory=MEMORY, mmu="shadow", kvm="6.1", vpid=True),
}
CR0_BITS = [1 << n for n in (0, 1, 2, 3, 5, 16, 18, 29, 30, 31)]
CR4_BITS = [1 << n for n in (0, 2, 4, 5, 7, 11, 12, 17, 20, 21, 22, 23, 24)]
EFER_BITS = [1 << n for n in (0, 8, 10, 11)]


def machine_of(scheme: Scheme, config: Config | None = None, policy: Policy | None = None) -> Machine:
    state = GuestState(cr0=0x10, cr3=0, cr4=0, efer=0, maxphyaddr=46)
    machine = Machine(config or CONFIGS[scheme], guest_kernel=False, state=state, policy=policy)
    words = machine.guest_memory.u64
    # 10000H is a top table of every mode: its first entry leads to 11000H, which maps 2 MB and 1 GB pages at 0
    words[0x10000 >> 3 : (0x10000 >> 3) + 4] = 0x11001
    words[0x11000 >> 3 : (0x11000 >> 3) + 4] = 0x83
    words[0x12000 >> 3 : (0x12000 >> 3) + 8] = [0x11001, 0x11000 | 3, 0, 0, 0x11001, 0, 0, 0x11009]
    return machine


def registers_of(machine: Machine) -> Registers:
    s = machine.state
    return Registers(s.cr0, s.cr3, s.cr4, s.efer, s.pdptes or (0, 0, 0, 0))


def write(machine: Machine, register: str, value: int) -> None:
    {"cr0": machine.mov_cr0, "cr3": machine.mov_cr3, "cr4": machine.mov_cr4, "efer": machine.wrmsr_efer}[register](
        value
    )


def own_exits(machine: Machine) -> dict[str, int]:
    """Exits by instructions on registers: those that map memory are another matter."""
    found = machine.counters()["exits_by_reason"]
    return {name: found.get(name, 0) for name in ("exception_nmi", "cr_access", "wrmsr", "rdmsr")}


def check(machine: Machine, want: Registers, scheme: Scheme) -> None:
    """The guest sees its registers, the hardware has what the table says; kvm_policy.md §3.4, the invariants."""
    have = registers_of(machine)
    assert (have.cr0, have.cr3, have.cr4, have.efer) == (want.cr0, want.cr3, want.cr4, want.efer)
    assert not want.pae_paging or have.pdpte == want.pdpte
    hw, table = machine.hardware, modes.hardware(want, scheme)
    if scheme is not Scheme.SHADOW:  # its tables are walked with registers of the VMM's own
        assert (hw["cr0"], hw["cr3"], hw["cr4"], hw["efer"]) == (table.cr0, table.cr3, table.cr4, table.efer)
    assert hw["vm86"] == table.vm86
    assert hw["cr3_load_exiting"] == hw["cr3_store_exiting"] == table.cr3_exits
    if scheme is Scheme.EPT and not want.paging:
        assert hw["cr3"] == modes.IDENTITY_MAP
        assert hw["cr3_load_exiting"]
        assert not hw["cr4"] & modes.PAE
    elif scheme.ept:
        assert hw["cr3"] == want.cr3
        assert not hw["cr3_load_exiting"]


def writes() -> st.SearchStrategy[tuple[str, int, bool]]:
    """(register, value, toggle): bits to flip of the register as it is, or the value itself."""
    few = st.lists(st.sampled_from(CR0_BITS), max_size=2, unique=True).map(sum)
    kinds = [
        st.tuples(st.just("cr0"), st.sampled_from([1, 0x8000_0000, 0x8000_0001, 0x8001_0000]) | few, st.just(True)),
        st.tuples(st.just("cr0"), st.sampled_from([0x11, 0x10, 0x8000_0011, 1 << 32]), st.just(False)),
        st.tuples(
            st.just("cr3"), st.sampled_from([*TABLES, TOP | 0x18, TOP | 3, 1 << 46 | TOP, 1 << 33]), st.just(False)
        ),
        st.tuples(st.just("cr4"), st.lists(st.sampled_from(CR4_BITS), max_size=2, unique=True).map(sum), st.just(True)),
        st.tuples(st.just("cr4"), st.sampled_from([0x20, 0, 0x2020, 1 << 15]), st.just(False)),
        st.tuples(st.just("efer"), st.sampled_from([0x100, 0x800, 0x900, 1, 2]), st.just(True)),
    ]
    return st.one_of(kinds)


@pytest.mark.parametrize("scheme", list(Scheme), ids=lambda s: s.name)
@settings(max_examples=40, deadline=None)
@given(st.lists(writes(), min_size=5, max_size=25))
def test_random_writes_do_what_the_specification_says(scheme: Scheme, steps: list[tuple[str, int, bool]]) -> None:
    machine = machine_of(scheme)
    memory = reference.ArrayMemory(machine.guest_memory.u64)
    want = Registers(0x10, 0, 0, 0)
    check(machine, want, scheme)
    for register, value, toggle in steps:
        value = getattr(want, register) ^ value if toggle else value
        before = own_exits(machine)
        exit = modes.exit_of(want, scheme, register, value)
        refused = ""
        try:
            after = modes.write(want, register, value, memory, scheme)
        except Refused as rule:
            after, refused = want, str(rule)
        if refused:
            with pytest.raises(StateError):
                write(machine, register, value)
        elif scheme is Scheme.SHADOW and after.paging and after.cr3 >= MEMORY:
            with pytest.raises(BusError, match="triple fault"):  # KVM ends a guest whose top table is nowhere
                write(machine, register, value)
            return
        else:
            write(machine, register, value)
        want = after
        for name, count in own_exits(machine).items():
            assert count - before[name] == (exit is not None and exit.name.lower() == name), (
                register,
                hex(value),
                name,
            )
        check(machine, want, scheme)
        assert machine.mov_from_cr3() == want.cr3
        assert machine.mov_from_cr0() == want.cr0
        assert machine.mov_from_cr4() == want.cr4
        assert machine.rdmsr_efer() == want.efer
        check(machine, want, scheme)
        compare_access(machine, memory, want)


def compare_access(machine: Machine, memory: reference.ArrayMemory, r: Registers) -> None:
    """An access of the guest's is what a walk of its own tables says."""
    state = reference.State(cr0=r.cr0, cr3=r.cr3, cr4=r.cr4, efer=r.efer, pdpte=r.pdpte, maxphyaddr=46)  # type: ignore[arg-type]
    if r.paging and r.cr3 & ~0xFFF != TOP and not r.pae_paging:
        return  # other tables lead astray
    for la in (0x2340, 0x40_0000):
        outcome = reference.walk(memory, state, la, "r", write=False)
        if isinstance(outcome, reference.Mapped) and outcome.gpa < MEMORY:
            assert machine.access(la).gpa == outcome.gpa, hex(la)
        elif isinstance(outcome, reference.PageFault):
            assert machine.access(la) == (None, outcome.error_code, la)


REFUSED = [
    ("cr0", 1 << 32 | 0x11, {}, "bits 63:32"),
    ("cr0", 0x2000_0011, {}, "NW=1"),
    ("cr0", 0x8000_0010, {}, "PG=1"),
    ("cr0", 0x8000_0011, {"efer": 0x100}, "needs CR4.PAE"),
    ("cr0", 0x11, {"cr4": 0x2_0020, "cr0": 0x8000_0011, "efer": 0x500}, "CR4.PCIDE=1"),
    ("cr0", 0x8000_0011, {"cr3": 0x12000, "cr4": 0x20}, "PDPTE"),
    ("cr3", 0x12000, {"cr0": 0x8000_0011, "cr3": 0x12020, "cr4": 0x20}, "PDPTE"),
    ("cr3", 1 << 46, {"cr0": 0x8000_0011, "cr4": 0x20, "efer": 0x500}, "reserved bits 0x400000000000"),
    ("cr4", 1 << 15, {}, "reserved bit of CR4"),
    ("cr4", 1 << 13, {}, "reserved bit of CR4"),
    ("cr4", 0, {"cr0": 0x8000_0011, "cr4": 0x20, "efer": 0x500}, "CR4.PAE"),
    ("cr4", 0x1020, {"cr0": 0x8000_0011, "cr4": 0x20, "efer": 0x500}, "CR4.LA57"),
    ("cr4", 0x2_0000, {}, "in long mode only"),
    ("cr4", 0x2_0020, {"cr0": 0x8000_0011, "cr3": 0x10018, "cr4": 0x20, "efer": 0x500}, "11:0"),
    ("efer", 2, {}, "reserved bit of EFER"),
    ("efer", 0x100, {"cr0": 0x8000_0011}, "LME"),
]


def to(machine: Machine, want: dict[str, int]) -> None:
    """A guest in real mode gets these registers."""
    machine.wrmsr_efer(want.get("efer", 0) & ~0x400)
    machine.mov_cr3(want.get("cr3", TOP))
    cr4 = want.get("cr4", 0)
    machine.mov_cr4(cr4 & ~0x2_0000)
    machine.mov_cr0(want.get("cr0", 0x11))
    if cr4 & 0x2_0000:
        machine.mov_cr4(cr4)


@pytest.mark.parametrize("scheme", list(Scheme), ids=lambda s: s.name)
@pytest.mark.parametrize(("register", "value", "start", "says"), REFUSED)
def test_what_is_refused(scheme: Scheme, register: str, value: int, start: dict[str, int], says: str) -> None:
    machine = machine_of(scheme)
    to(machine, start)
    before = registers_of(machine)
    with pytest.raises(StateError, match=says):
        write(machine, register, value)
    assert registers_of(machine) == before
    machine.access(0x1000)


def test_the_identity_table() -> None:
    """1024 entries of 4 MB in a page of guest-physical memory; the guest sees every address at itself."""
    machine = machine_of(Scheme.EPT)
    page = machine.access(modes.IDENTITY_MAP).gpa
    assert page == modes.IDENTITY_MAP
    at = (guest_memory_at(machine) + MEMORY + 0x1F_FFFF & ~0x1F_FFFF) + (modes.IDENTITY_MAP & 0x1F_FFFF)
    entries = machine.memory.u64[at >> 3 : (at >> 3) + 512].view(np.uint32)
    assert entries.tolist() == [i << 22 | 0xE7 for i in range(1024)]
    state = reference.State(cr0=0x8000_0031, cr3=0, cr4=0x2010, efer=0)
    memory = reference.ArrayMemory(machine.memory.u64[at >> 3 : (at >> 3) + 512])
    for la in [*range(0, 1 << 32, 0x40_0000 - 0x1000), (1 << 32) - 1]:
        outcome = reference.walk(memory, state, la, "w", write=False)
        assert isinstance(outcome, reference.Mapped)
        assert outcome.gpa == la
        assert machine.access(la).gpa == la


def test_translations_without_paging_are_not_used_with_it() -> None:
    for scheme in Scheme:
        machine = machine_of(scheme)
        to(machine, {"cr0": 0x11, "cr4": 0x10})
        machine.guest_memory.write64(TOP, 0x40_0083 | 0x83 << 32)
        assert machine.access(0x2340).gpa == 0x2340
        machine.mov_cr0(0x8000_0011)
        assert machine.access(0x2340).gpa == 0x40_2340
        machine.mov_cr0(0x11)
        assert machine.access(0x2340).gpa == 0x2340


@pytest.mark.parametrize("scheme", [Scheme.NATIVE, Scheme.EPT, Scheme.UNRESTRICTED], ids=lambda s: s.name)
def test_pdptes_are_loaded_by_pge_and_not_by_others(scheme: Scheme) -> None:
    """PGE is the guest's own over EPT: the processor reads them, and no exit tells the VMM."""
    machine = machine_of(scheme)
    to(machine, {"cr0": 0x8000_0011, "cr3": 0x12020, "cr4": 0x20})
    machine.guest_memory.write64(0x12028, 0x11001)
    before = own_exits(machine)
    assert machine.access(0x4000_0000).error_code == 0
    machine.mov_cr4(0x28)
    assert machine.access(0x4000_0000).error_code == 0
    machine.mov_cr4(0xA8)
    assert machine.access(0x4000_0000).gpa == 0
    assert own_exits(machine)["cr_access"] - before["cr_access"] == 0
    machine.guest_memory.write64(0x12028, 0x11003)
    with pytest.raises(StateError, match="PDPTE"):
        machine.mov_cr4(0x28)
    assert machine.state.cr4 == 0xA8
    machine.guest_memory.write64(0x12028, 0)
    if scheme is not Scheme.NATIVE:
        machine.exit_instruction(ExitReason.CPUID)
        assert tuple(machine.vmcs["guest_pdpte"]) == (0x11001, 0x11001, 0, 0x11009)
    assert machine.access(0x4000_0000).gpa == 0


def test_exits_say_which_instruction() -> None:
    """Qualifications of CR accesses (vmx.md §5.1), the #GP of a virtual-8086 task, EFER by its number."""

    class Watch(Policy):
        def __init__(self) -> None:
            self.seen: list[tuple[Any, ...]] = []

        def on_cr_access(self, machine: Machine, exit: Exit) -> Action:
            self.seen.append(("cr", exit.qualification, exit.operand))
            return machine.default()

        def on_wrmsr(self, machine: Machine, exit: Exit) -> Action:
            self.seen.append(("wrmsr", exit.operand, exit.value))
            return machine.default()

        def on_exception_nmi(self, machine: Machine, exit: Exit) -> Action:
            self.seen.append(("exception", exit.interruption_info, exit.error_code))
            return machine.default()

    policy = Watch()
    machine = machine_of(Scheme.EPT, policy=policy)
    machine.mov_cr3(TOP)
    machine.clts()
    machine.lmsw(0x9)
    machine.clts()
    machine.lmsw(0xE, memory=True)
    machine.lmsw(0x0)
    assert machine.mov_from_cr3() == TOP
    machine.mov_cr3(0x11000)
    machine.mov_cr0(0x13)
    machine.mov_cr4(0x30)
    machine.wrmsr_efer(0x800)
    gp = ("exception", 0x8000_0B0D, 0)
    assert policy.seen == [
        gp, gp, gp, ("cr", 0xE_0070, 0), ("cr", 0x30, 0), ("cr", 0x13, 0), ("cr", 3, 0x11000), ("cr", 0, 0x13),
        ("cr", 4, 0x30), ("wrmsr", 0xC000_0080, 0x800),
    ]  # fmt: skip
    assert machine.state.cr0 == 0x13
    assert machine.mov_from_cr0() == 0x13


def test_a_policy_may_refuse_or_swallow_a_write() -> None:
    class Refuse(Policy):
        def on_cr_access(self, machine: Machine, exit: Exit) -> Action:
            return Action.INJECT_GENERAL_PROTECTION if exit.operand & 4 else Action.EMULATED

    machine = machine_of(Scheme.UNRESTRICTED, policy=Refuse())
    machine.mov_cr0(0x11)
    assert machine.mov_from_cr0() == 0x10
    with pytest.raises(StateError, match=r"#GP\(0\)"):
        machine.mov_cr0(0x15)
    assert machine.mov_from_cr0() == 0x10


@pytest.mark.parametrize("place", [0xFEFF_C000, 0xFFFF_C000, 64 << 20])
def test_the_place_of_the_identity_table(place: int) -> None:
    """User space chooses it, KVM has a slot there: seen by whoever looks at guest-physical memory."""
    machine = machine_of(Scheme.EPT, CONFIGS[Scheme.EPT].replace(identity_map=place))
    assert machine.hardware["cr3"] == place
    assert machine.access(place + 4, "w").gpa == place + 4
    assert machine.counters()["mmio"] == 0
    assert machine.load(place + 4, 4).value == 0x40_00E7
    assert machine.load(place + 0x1066 - 2, 4).value == (0x68 + 32) << 16  # the I/O bitmap's place in the task state
    assert machine.access(place - 1).gpa == place - 1
    to(machine, {"cr0": 0x8000_0011, "cr4": 0x10})
    assert machine.hardware["cr3"] == TOP
    to(machine, {"cr0": 0x11})
    assert machine.hardware["cr3"] == place


def test_no_room_for_the_identity_table() -> None:
    machine = Machine(Config(mmu="ept", memory="8G"), guest_kernel=False, state=GuestState(cr3=TOP))
    with pytest.raises(ConfigError, match="identity table"):
        machine.mov_cr0(0x11)
    for place in (0, 0xFFFB_C001, 0xFFFF_D000, 1 << 32):
        with pytest.raises(ConfigError, match="identity_map="):
            Config(mmu="ept", identity_map=place)
    machine = machine_of(Scheme.EPT, CONFIGS[Scheme.EPT].replace(unrestricted_guest=True))
    assert machine.hardware["cr0"] == 0x30


@pytest.mark.parametrize("tpr", [None, "flexpriority"])
def test_vcpus_of_a_host_share_an_identity_table(tpr: str | None) -> None:
    """Of each machine its own: both start in real mode, one turns paging on."""
    config = CONFIGS[Scheme.EPT].replace(tpr=tpr)
    state = GuestState(cr0=0x10, cr3=0, cr4=0, efer=0, maxphyaddr=46)
    host = Host([(config, 3), (config.replace(identity_map=0xFEFF_8000), 2)], guest_kernel=False, state=state)
    for _ in range(2):
        for vcpu in range(5):
            machine = host.place(vcpu, 0)
            machine.guest_memory.write64(TOP, 0x40_0083 | 0x83 << 32)
            paging = vcpu in (1, 4)
            to(machine, {"cr0": 0x8000_0011 if paging else 0x10, "cr3": TOP, "cr4": 0x10})
            assert machine.access(0x2340, "w").gpa == (0x40_2340 if paging else 0x2340)
            assert machine.hardware["cr3"] == (TOP if paging else machine.config.identity_map)
            assert machine.access(0xFFF0_0000 if paging else 0x2340)[:1] == ((None,) if paging else (0x2340,))
    machine = host.place(0, 0)
    for place in (0xFFFB_C000, 0xFFFB_F000):
        assert machine.access(place, "w").gpa == place
    assert machine.counters()["mmio"] == 0
