"""Hosts whose machines have their VMM in Python and in the kernels, in lockstep: vCPUs that move between physical CPUs,
remote flushes, logs, interprocessor interrupts, vCPUs that come and go. And a VMM that raises while the host asks it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, GuestState, Host, Kvm, Machine, Op, PolicyError
from fastmmu.exits import ExitReason
from fastmmu.kvm.policy.requests import Mode
from fastmmu.kvm.port import VirtualCpu
from tests.support.two_vmms import come, state_of

SMALL: dict[str, Any] = {"memory": "64M", "tlb": "skylake"}
MACHINES = {
    "linux": [
        (Config(**SMALL, mmu="ept", kvm="6.1", vpid=True, pml=True, tdp_mmu=False), 3),
        (Config(**SMALL, mmu="shadow", kvm="6.1", vpid=True), 2),
    ],
    "slides": [(Config(**SMALL, mmu="ept"), 3), (Config(**SMALL, mmu="shadow", vpid=True), 2)],
    "no VPIDs": [(Config(**SMALL, mmu="shadow"), 3), (Config(**SMALL, mmu="ept", kvm="6.1", host_memory="512k"), 2)],
    "devices": [
        (Config(**SMALL, mmu="ept", kvm="6.1", vpid=True, noncoherent_dma=True), 2),
        (Config(**SMALL, mmu="ept", noncoherent_dma=True, ept_ad=False), 2),
        (Config(**SMALL, mmu="shadow", kvm="6.1", noncoherent_dma=True), 2),
    ],
    "APICs": [
        (Config(**SMALL, mmu="ept", kvm="6.1", vpid=True, tpr="apicv", pml=True), 2),
        (Config(**SMALL, mmu="shadow", kvm="6.1", tpr="flexpriority"), 2),
        (Config(**SMALL, mmu="ept", tpr="trap"), 2),
        (Config(**SMALL, mmu="shadow", tpr="patch"), 2),
    ],
}


class Hosts:
    """Two hosts in lockstep; what is done comes from one random sequence."""

    def __init__(self, machines: list[tuple[Config, int]], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.hosts = [
            Host([(config.replace(vmm=vmm), count) for config, count in machines], cpus=3)
            for vmm in ("kernel", "python")
        ]
        self.living = {vcpu: vm for vm, m in enumerate(self.hosts[0].machines) for vcpu in self.hosts[0].vcpus_of(m)}
        self.apic = machines[0][0].tpr is not None
        self.compare("made")

    def do(self, what: str, call: Callable[[Host], Any]) -> Any:
        kernel, python = (come(lambda host=host: call(host)) for host in self.hosts)  # type: ignore[misc]
        assert python == kernel, what
        self.compare(what)
        return kernel

    def compare(self, what: str) -> None:
        kernel, python = self.hosts
        assert python.totals() == kernel.totals(), what
        for vcpu in self.living:
            assert python.counters(vcpu) == kernel.counters(vcpu), (what, vcpu)
            assert python.deliveries(vcpu) == kernel.deliveries(vcpu), (what, vcpu)
            assert python.vpid(vcpu) == kernel.vpid(vcpu)
        for one, other in zip(kernel.machines, python.machines, strict=True):
            of_kernel, of_python = state_of(one), state_of(other)
            for name, value in of_kernel.items():
                assert of_python[name] == value, (what, name)
        for one_cpu, other_cpu in zip(kernel.cpus, python.cpus, strict=True):
            assert other_cpu.counters() == one_cpu.counters(), what

    # ---- steps -----------------------------------------------------------------------------------------------------

    def events(self, n: int = 60) -> tuple[Any, Any, Any]:
        rng = self.rng
        op = rng.choice([Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH], n).astype(np.uint8)
        size = np.full(n, 8, np.uint8)
        addr = (np.uint64(1 << 40) + rng.integers(0, 60, n).astype(np.uint64) * np.uint64(4096)).astype(np.uint64)
        for at in range(7, n, 13):
            op[at], size[at] = Op.UNMAP, 0
        for at in range(11, n, 17):
            op[at], size[at], addr[at] = Op.SWITCH, 0, rng.integers(0, 3)
        if self.apic:
            for at in range(3, n, 9):
                op[at], size[at], addr[at] = Op.IPI, 0, 0x4000 | 0x51 | int(rng.integers(0, 2)) << 32
        return op, size, addr

    def step(self) -> None:
        rng = self.rng
        vcpu = int(rng.choice(list(self.living)))
        vm = self.living[vcpu]
        kind = rng.choice(["run"] * 8 + ["place", "start", "get", "stop", "caching", "swap", "remove", "add"])
        if kind == "run":
            cpu, events = int(rng.integers(0, 3)), self.events()
            self.do(f"run {vcpu} on {cpu}", lambda host: host.run(vcpu, cpu, *events))
        elif kind == "place":
            cpu = int(rng.integers(0, 3))
            self.do(f"place {vcpu} on {cpu}", lambda host: host.place(vcpu, cpu) and None)
        elif kind == "remove" and sum(each == vm for each in self.living.values()) > 1:
            del self.living[vcpu]
            self.do(f"remove {vcpu}", lambda host: host.remove(vcpu))
        elif kind == "add" and len(self.living) < 12:
            self.living[self.do("add", lambda host: host.add_vcpu(host.machines[vm]))] = vm
        elif kind == "swap":
            page = int(rng.integers(0, 4096))
            self.do("swap", lambda host: host.machines[vm].vmm.swap_out(0, page))
        elif kind == "caching":
            off = bool(rng.integers(0, 2))
            self.do("caching", lambda host: host.machines[vm].vmm.guest_caching(uncached=off))
        elif kind == "start":
            self.do("start", lambda host: host.machines[vm].vmm.start_dirty_log(0))
        elif kind == "stop":
            self.do("stop", lambda host: host.machines[vm].vmm.stop_dirty_log(0))
        elif kind == "get":
            self.do("get", lambda host: come(lambda: host.machines[vm].vmm.dirty_log(0).tolist()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MACHINES)
def test_hosts(name: str, seed: int) -> None:
    hosts = Hosts(MACHINES[name], seed)
    for _ in range(60):
        hosts.step()
    totals = hosts.hosts[1].totals()
    assert totals["migrations"] > 4
    assert totals["switches"] > 10
    assert sum(hosts.hosts[1].counters(vcpu)["vm_exits"] for vcpu in hosts.living) > 50


def test_rings_of_several_vcpus() -> None:
    hosts = Hosts([(Config(**SMALL, mmu="ept", kvm="6.1", pml=True), 2)], 1)
    hosts.do("ring", lambda host: host.machines[0].vmm.use_dirty_ring(1024))
    hosts.do("start", lambda host: host.machines[0].vmm.start_dirty_log(0))
    op, size = np.full(600, Op.WRITE, np.uint8), np.full(600, 8, np.uint8)
    for at in range(6):
        addr = np.uint64(1 << 40) + (np.arange(600, dtype=np.uint64) + np.uint64(500 * at)) * np.uint64(4096)
        hosts.do("run", lambda host, at=at, addr=addr: host.run(at & 1, at % 3, op, size, addr))  # type: ignore[misc]
    assert hosts.hosts[1].machines[0].vmm.counters()["ring_full"] > 0


# ---- a VMM that does not do what it should ------------------------------------------------------------------------


def two(vmm: type[Kvm]) -> Host:
    return Host([(Config(**SMALL, mmu="ept", vmm=vmm), 2)], cpus=2, guest_kernel=False, state=GuestState(cr3=0x1000))


@pytest.mark.parametrize("method", ["vcpu_put", "vcpu_load", "vcpu_enter_guest", "vcpu_exit", "flush_pml_buffer"])
def test_what_raises_while_the_host_asks_comes_out_and_the_host_goes_on(method: str) -> None:
    def raising(self: Any, vcpu: VirtualCpu) -> Any:
        if Broken.broken:
            raise ArithmeticError("mine")
        return getattr(super(Broken, self), method)(vcpu)

    class Broken(Kvm):
        broken = False

    setattr(Broken, method, raising)
    host = two(Broken)
    machine = host.place(0, 0)
    host.place(1, 1)
    Broken.broken = True
    with pytest.raises(ArithmeticError, match="mine"):
        host.place(0, 1)
    Broken.broken = False
    for vcpu, cpu in ((0, 1), (1, 0), (0, 0), (1, 1)):
        assert host.place(vcpu, cpu) is machine
        machine.exit_instruction(ExitReason.CPUID)
    Broken.broken = True
    with contextlib.suppress(ArithmeticError):
        host.remove(0)
    assert host.vcpus_of(machine) == (1,)
    Broken.broken = False
    assert host.place(1, 0) is machine
    machine.exit_instruction(ExitReason.CPUID)


def test_a_vmm_that_does_not_enter() -> None:
    class Idle(Kvm):
        def vcpu_enter_guest(self, vcpu: VirtualCpu) -> None:
            if not Idle.idle:
                super().vcpu_enter_guest(vcpu)

        idle = True

    host = two(Idle)
    with pytest.raises(PolicyError, match=r"Idle\.vcpu_enter_guest\(\) did not enter the guest on CPU 1"):
        host.place(0, 1)
    with pytest.raises(Exception, match="is on no CPU"):
        host.machines[0].load(0)
    Idle.idle = False
    host.place(0, 1).exit_instruction(ExitReason.CPUID)


def test_entering_is_for_the_host() -> None:
    def hostile(vcpu: VirtualCpu) -> None:
        for call in (vcpu.enter, vcpu.arrived, vcpu.route_notifications, lambda: vcpu.leave(1), lambda: vcpu.placing):
            with pytest.raises(PolicyError, match="the host neither puts this vCPU on a CPU nor takes it"):
                call()
        other = vcpu.vm.vcpus[1]
        with pytest.raises(PolicyError, match=r"the roots of vCPU 1 can be changed while it runs; now vCPU 0 does"):
            other.roots.forget()
        assert other.pcpu == -1
        assert other.mode == Mode.OUTSIDE_GUEST_MODE

    class Mine(Kvm):
        def handle(self, vcpu: VirtualCpu) -> int:
            hostile(vcpu)
            return super().handle(vcpu)

    host = two(Mine)
    host.place(0, 0).exit_instruction(ExitReason.CPUID)


def test_the_first_registers_are_its_own() -> None:
    seen = []

    class First(Kvm):
        def vcpu_reset(self, vcpu: VirtualCpu) -> bool:
            seen.append(vcpu.arch.cr3)
            return super().vcpu_reset(vcpu)

    for mmu in ("ept", "shadow"):
        machine = Machine(Config(**SMALL, mmu=mmu, vmm=First), guest_kernel=False, state=GuestState(cr3=0x5000))
        assert machine.state.cr3 == 0x5000
    assert seen == [0x5000, 0x5000]

    class Raising(Kvm):
        def vcpu_reset(self, vcpu: VirtualCpu) -> bool:
            raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine"):
        Machine(Config(**SMALL, mmu="ept", vmm=Raising))
