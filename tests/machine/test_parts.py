"""A machine has parts; each works on its own, and none of them holds the machine."""

from __future__ import annotations

import gc
import inspect
import weakref

import pytest

from fastmmu import Action, Config, Exit, GuestState, Machine, Policy, StateError
from fastmmu.counters import Counter, reader, sums
from fastmmu.machine.apic_port import GuestApic
from fastmmu.machine.board import Board
from fastmmu.machine.instructions import Guest

IDENTITY = ((0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x5003))


def bare(config: Config, policy: Policy | None = None) -> Machine:
    state = GuestState(cr4=0xA0, cr3=0x1000, maxphyaddr=46)
    machine = Machine(config, policy=policy, guest_kernel=False, state=state)
    for at, entry in IDENTITY:
        machine.guest_memory.write64(at, entry)
    return machine


def test_every_instruction_is_a_method_of_the_machine() -> None:
    names = [name for name in vars(Guest) if not name.startswith("_")]
    assert {"load", "store", "access", "mov_cr3", "state", "hardware"} < set(names)
    for name in names:
        of_guest, of_machine = getattr(Guest, name), getattr(Machine, name)
        assert callable(of_guest) == callable(of_machine)
        if callable(of_guest):
            assert inspect.signature(of_guest) == inspect.signature(of_machine), name


def test_what_the_machine_passes_on_is_what_the_guest_does() -> None:
    one, other = bare(Config(mmu="ept", memory="64M")), bare(Config(mmu="ept", memory="64M"))
    assert one.store(0x18, 7, 4) == other.guest.store(0x18, 7, 4)
    assert one.load(0x18, 4) == other.guest.load(0x18, 4)
    assert one.access(0x18, "rw", size=2) == other.guest.access(0x18, "rw", size=2)
    assert one.mov_cr0(one.mov_from_cr0() & ~2) == other.guest.mov_cr0(other.guest.mov_from_cr0() & ~2)
    one.lmsw(3, memory=True)
    other.guest.lmsw(3, memory=True)
    one.mov_cr4(one.mov_from_cr4() | 0x80)
    other.guest.mov_cr4(other.guest.mov_from_cr4() | 0x80)
    one.clts(), other.guest.clts()
    one.wrmsr_efer(one.rdmsr_efer() | 1)
    other.guest.wrmsr_efer(other.guest.rdmsr_efer() | 1)
    one.mov_cr3(one.mov_from_cr3())
    other.guest.mov_cr3(other.guest.mov_from_cr3())
    one.exit_instruction(10), other.guest.exit_instruction(10)
    one.invlpg(0x18), other.guest.invlpg(0x18)
    assert one.state == other.guest.state
    assert one.hardware == other.guest.hardware
    assert one.counters() == other.counters()
    assert one.counters()["vm_exits"] > 0


def test_parts_outlive_the_machine_and_do_not_hold_it() -> None:
    machine = bare(Config(mmu="ept", memory="64M", tpr="apicv"))
    guest, vmm, apic, memory = machine.guest, machine.vmm, machine.apic, machine.memory
    assert isinstance(apic, GuestApic)
    assert machine.guest is guest
    assert machine.apic is apic
    assert machine.vmm is vmm
    gone = weakref.ref(machine)
    gc.disable()
    try:
        del machine
        assert gone() is None  # by its count alone: there is no cycle
    finally:
        gc.enable()
    assert guest.store(0x20, 5).gpa == 0x5020
    assert guest.load(0x20).value == 5
    apic.write_cr8(3)
    assert apic.read_cr8() == 3
    assert vmm.counters()["pages"][0] > 0
    assert vmm.stats()["mmu_cache_miss"] >= 0
    assert memory.nbytes > 64 << 20


def test_a_handler_gets_the_machine_or_its_like() -> None:
    class Keep(Policy):
        def __init__(self) -> None:
            self.seen: list[Machine] = []

        def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
            self.seen.append(machine)
            return machine.default()

    class Mine(Machine):
        pass

    policy = Keep()
    state = GuestState(cr4=0xA0, cr3=0x1000, maxphyaddr=46)
    machine = Mine(Config(mmu="ept", memory="64M"), policy=policy, guest_kernel=False, state=state)
    for at, entry in IDENTITY:
        machine.guest_memory.write64(at, entry)
    guest = machine.guest
    guest.load(0)
    assert policy.seen
    assert all(each is machine for each in policy.seen)


def test_a_handler_of_a_machine_that_nobody_holds() -> None:
    kinds = []

    class Look(Policy):
        def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
            kinds.append((type(machine), machine.policy is self, machine.vmcs["exit_reason"]))
            return machine.default()

    guest = bare(Config(mmu="ept", memory="64M"), Look()).guest
    gc.collect()
    guest.exit_instruction(10)
    guest.exit_instruction(10)
    assert kinds == [(Machine, True, 10)] * 2


def test_a_machine_is_made_once_and_before_it_is_used() -> None:
    class Lazy(Machine):
        def __init__(self) -> None:
            pass

    for use in (lambda m: m.load(0), lambda m: m.counters(), lambda m: m.vmm, lambda m: m.mov_cr3(0)):
        with pytest.raises(StateError, match=r"Machine\.__init__"):
            use(Lazy())
    machine = Machine(Config())
    with pytest.raises(StateError, match="make another"):
        machine.__init__()  # type: ignore[misc]
    with pytest.raises(TypeError):
        Guest.__new__(Guest)  # type: ignore[call-arg]
    with pytest.raises(StateError, match="tpr="):
        GuestApic(Board())


def test_rows_as_sums_are_what_the_rows_say() -> None:
    rows = [Counter("a", "cpu.x[1] - mmu.y_2"), Counter("b", "4 * (cpu.x[0] + mmu.y_2)"), Counter("c", "cpu.x[1]")]
    numbers = {"cpu": {"x": [3, 20]}, "mmu": {"y_2": 5}}
    words = {0: 3, 1: 20, 64: 5}
    named = reader(rows)({"cpu": sums({"x": [0, 1]}), "mmu": sums({"y_2": 0}, 64)})
    added = {name: sum(factor * words[word] for word, factor in row.words.items()) for name, row in named.items()}
    assert added == reader(rows)(numbers) == {"a": 15, "b": 32, "c": 20}
