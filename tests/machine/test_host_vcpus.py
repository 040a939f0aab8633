"""vCPUs and machines of a host that come and go beside others: logs, APICs, what stays loaded, what is refused."""

from __future__ import annotations

import threading
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
import pytest

from fastmmu import (
    Action,
    Config,
    ConfigError,
    Exit,
    GuestState,
    Host,
    Kvm,
    Machine,
    MemorySlot,
    Policy,
    PolicyError,
    StateError,
)
from fastmmu.ops import Op
from tests.support.host_events import BARE, NEW, OLD, ROOT, SMALL, alone, few, program, tables
from tests.support.vmm_tables import guest_memory_at

every_kvm = pytest.mark.parametrize("kvm", ["slides", "6.1"])
every_mmu = pytest.mark.parametrize("mmu", ["ept", "shadow"])


# ---- what vCPUs share ------------------------------------------------------------------------------------------------


@every_kvm
@every_mmu
def test_a_vcpu_that_came_later_is_flushed_and_logged_like_the_others(mmu: str, kvm: str) -> None:
    """A log in rings that began before it came; what it wrote is read when it ends."""
    host = Host([SMALL.replace(mmu=mmu, kvm=kvm)], cpus=2)
    (machine,) = host.machines
    vmm = machine.vmm
    vmm.use_dirty_ring(1024)
    host.run(0, 0, *few())
    vmm.start_dirty_log(0)
    vcpu = host.add_vcpu(machine)
    out = np.zeros(8, np.uint64)
    host.run(vcpu, 1, *few(8), out)
    host.remove(vcpu)
    log = vmm.dirty_log(0)
    assert all(log[int(gpa) >> 12] for gpa in out[1::2])
    assert not vmm.dirty_log(0)[np.uint64(out[1]) >> np.uint64(12)]


@pytest.mark.parametrize("tpr", ["trap", "patch", "flexpriority", "apicv"])
def test_apics_of_vcpus_that_come_and_go(tpr: str) -> None:
    """A new one has the lowest number (APIC id) that is free in the machine; its registers are as after reset."""
    host = Host([(SMALL.replace(tpr=tpr), 3)], cpus=2)
    (machine,) = host.machines
    ids = dict(zip(host.vcpus_of(machine), range(3), strict=True))
    for turn in range(12):
        vcpu = host.add_vcpu(machine)
        ids[vcpu] = min({*range(9)} - {*ids.values()})
        apic = host.place(vcpu, turn % 2).apic
        assert apic is not None
        assert apic.read(0x20) >> 24 == ids[vcpu]
        assert [apic.read(0xF0), apic.read(0x80), apic.deliveries] == [0xFF, 0, []]
        apic.write(0xF0, 0x1FF)
        apic.write(0x80, 0x20)
        apic.write(0x300, 0x51 | 1 << 18)
        assert [each.vector for each in apic.deliveries] == [0x51]
        for ended in Random(turn).sample(sorted(ids), max(0, len(ids) - 3)):
            host.remove(ended)
            del ids[ended]
        for other in ids:  # an interrupt for an id that nobody has any more is lost, others arrive
            mine = host.place(other, 0).apic
            assert mine is not None
            mine.write(0xF0, 0x1FF)
            before = len(host.deliveries(other))
            for target in range(5):
                mine.write(0x310, target << 24)
                mine.write(0x300, 0x61 + 16 * target)
            host.place(other, 0)
            assert len(host.deliveries(other)) == before + 1
    assert len({*ids.values()}) == 3
    assert host.totals()["interprocessor"] == 12 + 12 * 3 * 5


@every_mmu
def test_a_machine_whose_last_vcpu_ends_waits_for_the_next(mmu: str) -> None:
    host = Host([SMALL.replace(mmu=mmu), SMALL], cpus=2)
    machine, other = host.machines
    columns = program(3, 1000)
    expected = alone(SMALL.replace(mmu=mmu), columns)[0]
    for turn in range(4):
        host.remove(host.vcpus_of(machine)[0])
        assert host.vcpus_of(machine) == ()
        with pytest.raises(StateError, match=r"vCPU 0 of this machine is on no CPU, or has ended"):
            machine.run(*columns)
        machine.vmm.start_dirty_log(0)
        machine.vmm.stop_dirty_log(0)
        vcpu, out = host.add_vcpu(machine), np.zeros(1000, np.uint64)
        host.run(vcpu, turn % 2, *columns, out)
        assert turn or np.array_equal(out, expected)
    assert host.vcpus_of(other) == (1,)


@every_mmu
def test_a_machine_holds_another_vcpu_where_the_loaded_one_ends(mmu: str) -> None:
    config = SMALL.replace(mmu=mmu)
    host = Host([(config, 2)], cpus=2, **BARE)
    (machine,) = host.machines
    tables(machine)
    for vcpu in (0, 1):
        assert host.place(vcpu, vcpu).access(0).gpa == OLD
    assert machine.tlb is host.cpus[1]
    host.remove(1)
    assert machine.tlb is host.cpus[0]
    machine.store(0x1000, NEW | 0x67)
    machine.invlpg(0)
    assert machine.access(0).gpa == NEW
    more = host.add_vcpu(machine)
    assert host.place(more, 1).access(0).gpa == NEW
    assert host.counters(1)["vm_exits"] >= 1  # of those that ended last they stay
    assert machine.state.cr3 == ROOT


@every_mmu
def test_a_vmm_in_python_has_the_vcpus_that_there_are(mmu: str) -> None:
    """Those that ended are none of its vCPUs, and who keeps one is refused."""
    kept: list[Any] = []

    class Keeps(Kvm):
        def default(self, vcpu: Any, exit: Exit) -> int:
            kept.append(vcpu)
            return super().default(vcpu, exit)

    config = SMALL.replace(mmu=mmu, exit_every=20)
    counted = []
    for vmm in ("kernel", Keeps):
        host = Host([(config.replace(vmm=vmm), 3)], cpus=2)
        (machine,) = host.machines
        columns, outs = program(2, 300), []
        for turn in range(8):
            for vcpu in host.vcpus_of(machine):
                outs.append(np.zeros(300, np.uint64))
                host.run(vcpu, turn % 2, *columns, outs[-1])
            host.remove(host.vcpus_of(machine)[turn % 3])
            host.add_vcpu(machine)
        counted.append((np.concatenate(outs), [host.counters(v) for v in host.vcpus_of(machine)], host.totals()))
    assert np.array_equal(counted[0][0], counted[1][0])
    assert counted[0][1:] == counted[1][1:]
    assert len({*kept}) == 3 + 8 - 1
    for vcpu in {*kept}:
        with pytest.raises(PolicyError, match="does not stand still"):
            vcpu.count("mmio")
    host.remove(machine)
    for vcpu in {*kept}:
        with pytest.raises(PolicyError, match="does not stand still"):
            vcpu.count("mmio")


def test_the_log_of_exits_of_vcpus_that_come_and_go() -> None:
    """Time goes on where one ends; a vCPU's log begins with itself."""
    host = Host([(SMALL.replace(exit_log=100_000, exit_every=50), 2)], cpus=1)
    (machine,) = host.machines
    for turn in range(6):
        for vcpu in host.vcpus_of(machine):
            host.run(vcpu, 0, *program(turn, 400))
        last = host.vcpus_of(machine)
        for ended in last[turn % 2 :] if turn == 3 else last[-1:]:
            host.remove(ended)
        while len(host.vcpus_of(machine)) < 2:
            assert len(host.exit_log(host.add_vcpu(machine))) == 0
    records = machine.exit_log().records
    assert (np.diff(records["time"].astype(np.int64)) >= 0).all()
    assert records["time"][-1] > 400 * 10
    host.run(host.vcpus_of(machine)[-1], 0, *program(1, 400))
    (vcpu,) = host.vcpus_of(machine)[-1:]
    assert 0 < len(host.exit_log(vcpu)) == host.counters(vcpu)["vm_exits"]


def test_another_machine_is_made_while_guests_run() -> None:
    """It flushes nothing of theirs, and their instructions go on without being placed again."""
    host = Host([SMALL], cpus=1, **BARE)
    machine = host.place(0, 0)
    tables(machine)
    machine.access(0)
    before = machine.counters(), host.cpus[0].counters()
    for mmu in ("ept", "shadow"):
        host.add(SMALL.replace(mmu=mmu, kvm="6.1"))
    host.remove(host.machines[-1])
    assert (machine.counters(), host.cpus[0].counters()) == before
    assert machine.access(0).gpa == OLD
    assert machine.counters()["tlb_misses"] == before[0]["tlb_misses"]


def test_policy_state_and_slots_are_the_machines_own() -> None:
    seen = []

    class Look(Policy):
        def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
            seen.append(exit.guest_physical)
            return machine.default()

    host = Host([SMALL], cpus=1)
    config = SMALL.replace(tpr="apicv", kvm="6.1", unrestricted_guest=False)
    slots = (MemorySlot(0x1_0000_0000, 0x3000), MemorySlot(0x1_4000_0000, 0x1000))
    machine = host.add(config, 3, policy=Look(), slots=slots, **BARE)
    again = host.add(SMALL)
    assert guest_memory_at(again) > guest_memory_at(machine) + (64 << 20) + 5 * (2 << 20)
    tables(machine, 0x1_0000_1000)
    assert host.place(2, 0) is machine
    machine.store(0, 0x1234)
    assert machine.load(0).value == 0x1234
    assert seen
    for index, vcpu in enumerate(host.vcpus_of(machine)):
        apic = host.place(vcpu, 0).apic
        assert apic is not None
        assert apic.page[0x20:0x24] == bytes([0, 0, 0, index])
        assert machine.load(0).value == 0x1234
    assert not again.guest_memory.u8[: 1 << 20].any()


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_machine_that_has_ended_refuses_every_call() -> None:
    host = Host([SMALL.replace(tpr="apicv"), SMALL], cpus=1)
    machine, other = host.machines
    host.run(0, 0, *few())
    vmm, apic, guest = machine.vmm, machine.apic, machine.guest
    assert apic is not None
    host.remove(machine)
    for call in (
        lambda: machine.run(*few()), lambda: machine.load(0), lambda: machine.store(0, 1), lambda: machine.access(0),
        lambda: machine.state, lambda: machine.hardware, lambda: machine.vmcs, lambda: machine.hw_cr3,
        lambda: machine.mmio, lambda: machine.vmm, lambda: machine.guest_memory, machine.counters,
        lambda: machine.mov_cr3(0x1000), machine.mov_from_cr0, lambda: machine.exit_instruction(10),
        lambda: guest.invlpg(0), lambda: guest.state, vmm.counters, vmm.stats, vmm.table_pages, vmm.reverse_maps,
        lambda: vmm.start_dirty_log(0), lambda: vmm.dirty_log(0), lambda: vmm.touch(0, 0, 1), lambda: vmm.omit,
        lambda: setattr(vmm, "omit", ()), lambda: vmm.swap_out(0, 0), lambda: vmm.delete_slot(0),
        lambda: apic.read(0x20), lambda: apic.write(0x80, 0), lambda: apic.now, lambda: apic.page,
        lambda: apic.deliveries, lambda: apic.wait(5), lambda: apic.address, lambda: setattr(apic, "address", 0x1000),
        lambda: apic.interrupt(0x51), lambda: apic.rdmsr(0x1B), apic.read_cr8,
    ):  # fmt: skip
        with pytest.raises(StateError, match=r"this Machine has ended, by Host\.remove: .* Host\.add"):
            call()
    with pytest.raises(PolicyError, match="no VM exit"):
        machine.default()
    for call in (
        lambda: host.remove(machine), lambda: host.add_vcpu(machine), lambda: host.vcpus_of(machine),
        lambda: Host([SMALL]).remove(other), lambda: host.remove(Machine(SMALL)),
    ):  # fmt: skip
        with pytest.raises(StateError, match="this Machine is none of this Host"):
            call()
    for call in (lambda: host.place(0, 0), lambda: host.remove(0), lambda: host.deliveries(0)):
        with pytest.raises(StateError, match=r"vCPU 0 has ended, by Host\.remove"):
            call()
    assert machine.config.tpr == "apicv"
    assert host.counters(0)["accesses"] == 4
    host.run(1, 0, *few())
    assert host.counters(1)["accesses"] == 4


def test_what_cannot_be_added_is_refused_and_changes_nothing() -> None:
    host = Host([SMALL], cpus=1)
    (machine,) = host.machines
    free = host.free_memory
    pae = GuestState(cr0=0x80000011, cr3=0x1000, cr4=0x20, efer=0)

    class Wrong(Policy):
        def on_nothing(self) -> None:
            pass

    overlap = MemorySlot(0x1000, 0x1000)
    for call, message in (
        (lambda: host.add(Config()), "native"), (lambda: host.add(SMALL, 0), "0 vCPUs"),
        (lambda: host.add(SMALL, 1025), "1025 vCPUs"), (lambda: host.add(SMALL.replace(tpr="patch"), 17), "0..15"),
        (lambda: host.add(SMALL, 2, guest_kernel=False, state=pae), "PDPTE|pdptes"),
        (lambda: host.add(SMALL, slots=[overlap]), "overlaps"), (lambda: host.add(SMALL, policy=Wrong()), "on_nothing"),
        (lambda: host.add(SMALL, slots=[MemorySlot(1, 2)]), "multiples of 4096"),
        (lambda: host.add(SMALL.replace(premapped=True), guest_kernel=False), "premapped"),
        (lambda: host.add("ept"), "config"), (lambda: host.add(SMALL, state=5), "state"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            call()
    alone_pae = host.add(SMALL, guest_kernel=False, state=pae)
    with pytest.raises(ConfigError, match="pdptes"):
        host.add_vcpu(alone_pae)
    host.remove(alone_pae)
    assert (host.free_memory, host.machines, host.totals()["vpids"]) == (free, (machine,), 1)
    host.run(0, 0, *few())
    full = host.add(SMALL.replace(tpr="patch"), 16)
    with pytest.raises(ConfigError, match=r"number 16; .* 0\.\.15"):
        host.add_vcpu(full)
    with pytest.raises(StateError, match="not made"):
        Host.__new__(Host).add(SMALL)


def test_nothing_comes_or_goes_while_a_guest_runs() -> None:
    """Not in the handler of an exit, nor from another thread."""
    refused: list[str] = []

    class Ends(Policy):
        def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
            for call in (lambda: host.remove(machine), lambda: host.add(SMALL), lambda: host.add_vcpu(machine)):
                with pytest.raises(PolicyError, match="stands still while a VM exit is handled"):
                    call()
                refused.append("one")
            return machine.default()

    host = Host([SMALL], cpus=1)
    machine = host.add(SMALL, policy=Ends())
    host.run(1, 0, np.array([Op.EXIT], np.uint8), np.ones(1, np.uint8), np.array([10], np.uint64))
    assert len(refused) == 3
    host.remove(machine)
    columns = few(400_000, 0x1000_0000)
    columns = (columns[0], columns[1], np.tile(few(100)[2], 4000))
    running = threading.Event()
    thread = threading.Thread(target=lambda: (running.set(), [host.run(0, 0, *columns) for _ in range(20)]))
    thread.start()
    running.wait()
    while thread.is_alive():
        with suppress(PolicyError):
            host.remove(host.add(SMALL))
            continue
        refused.append("thread")
    thread.join()
    assert "thread" in refused
    host.remove(host.add(SMALL))
