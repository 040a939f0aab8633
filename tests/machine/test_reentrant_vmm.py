"""Methods of a VMM in Python that call back into host, machine and user space, or raise: refused, and no crash."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
import pytest

from fastmmu import Action, Config, Exit, FastmmuError, GuestState, Host, Kvm, Machine, MemorySlot, Policy, PolicyError
from fastmmu.exits import ExitReason
from tests.support.hammer import forked
from tests.support.host_events import BARE, SMALL, few, tables
from tests.support.vmm_tables import guest_memory_at

HOOKS = (
    "vcpu_reset", "load_mmu", "vcpu_put", "vcpu_load", "vcpu_enter_guest", "vcpu_exit", "flush_pml_buffer",
    "update_cpu_dirty_logging", "flush_remote_tlbs", "zap_all", "handle", "default",
    "allocate_vpid", "free_vpid", "create_lapic",
)  # fmt: skip
"""Methods that the kernels call."""

PAE = GuestState(cr0=0x80000011, cr3=0x1000, cr4=0x20, efer=0)
"""PDPTE registers come from memory, before the first instruction."""


class MischiefError(RuntimeError):
    """What the VMM raises."""


def vmm_class(before: Callable[[str], None]) -> type[Kvm]:
    """A VMM whose methods do this first."""

    def hook(name: str) -> Callable[..., Any]:
        def method(self: Any, *given: Any) -> Any:
            before(name)
            return getattr(Kvm, name)(self, *given)

        return method

    def __init__(self: Any, vm: Any) -> None:
        Kvm.__init__(self, vm)
        before("__init__")

    return type("Reenters", (Kvm,), {"__init__": __init__, **{name: hook(name) for name in HOOKS}})


class Scene:
    """A host whose machines come and go, from outside and from the methods of their VMMs; whatever was got is kept."""

    def __init__(self, seed: int) -> None:
        self.random, self.depth, self.seen, self.kept = Random(seed), 0, dict.fromkeys(HOOKS, 0), list[Any]()
        vmm = vmm_class(self.before)
        self.configs = [
            SMALL.replace(vmm=vmm, mmu=mmu, tpr=tpr, kvm=kvm, exit_every=7, exit_log=5)
            for mmu in ("ept", "shadow") for tpr in (None, "apicv", "trap") for kvm in ("6.1", "slides")
        ]  # fmt: skip
        self.host: Host | None = None
        self.host = Host([(self.config(), 2), (self.config(), 1)], cpus=2)

    def config(self) -> Config:
        return self.random.choice(self.configs)

    def before(self, name: str) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1
        if self.host is None or self.depth > 2 or self.random.random() < 0.7:
            return
        self.depth += 1
        try:
            if self.random.random() < 0.1:
                raise MischiefError
            self.act()
        except FastmmuError:
            pass
        finally:
            self.depth -= 1

    def act(self) -> None:
        assert self.host is not None
        host, one = self.host, self.random.choice
        machines = host.machines or (host.add(self.config()),)
        vcpus = [vcpu for each in machines for vcpu in host.vcpus_of(each)]
        machine, vcpu = one(machines), one(vcpus or [0])
        self.kept += [machine, machine.vmm, machine.apic, machine.guest, machine.tlb]
        what = self.random.randrange(16)
        if what < 5:
            host.run(vcpu, self.random.randrange(2), *few(20))
        elif what == 5:
            host.remove(machine if self.random.random() < 0.3 else vcpu)
        elif what == 6 and len(machines) < 4:
            slot = MemorySlot(0x1_0000_0000, 1 << 16)
            host.add(self.config(), self.random.randint(1, 3), slots=[slot])
            host.place(host.vcpus - 1, 0)
            host.place(*host.vcpus_of(host.add(self.config(), guest_kernel=False, state=PAE)), 1)
        elif what == 7:
            host.add_vcpu(machine)
        elif what == 8:
            host.place(vcpu, self.random.randrange(2)).exit_instruction(ExitReason.CPUID)
        elif what == 9:
            _ = host.counters(vcpu), host.totals(), machine.counters(), machine.state, machine.vmcs, machine.mmio
        elif what == 10:
            self.use(one(self.kept))
        else:
            vmm = machine.vmm
            vmm.start_dirty_log(0)
            vmm.touch(0, 0, 16)
            vmm.dirty_log(0)
            _ = vmm.counters(), vmm.reverse_maps(), vmm.table_pages()
            if what == 14:
                vmm.stop_dirty_log(0)
            elif what == 15:
                vmm.delete_slot(1)

    def use(self, part: Any) -> None:
        """Something kept, of a machine that has ended perhaps."""
        for name in ("counters", "state", "page", "deliveries", "now", "omit", "entries", "exit_log", "guest_memory"):
            found = getattr(part, name, None)
            if callable(found):
                found()


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_methods_of_a_vmm_that_come_back(first: int) -> None:
    """In processes of their own: whatever comes and goes meanwhile, nothing ends the interpreter."""

    def run() -> None:
        seen: dict[str, int] = {}
        for seed in range(first, first + 10):
            scene = Scene(seed)
            for _ in range(30):
                with suppress(FastmmuError, MischiefError):
                    scene.act()
            seen = {name: seen.get(name, 0) + n for name, n in scene.seen.items()}
        assert min(seen.values()) > 0, seen

    forked(run)


REFUSED: dict[str, Callable[[Host, Machine], object]] = {
    "run": lambda host, machine: host.run(0, 0, *few()),
    "place": lambda host, machine: host.place(1, 0),
    "add": lambda host, machine: host.add(SMALL),
    "add_vcpu": lambda host, machine: host.add_vcpu(machine),
    "remove": lambda host, machine: host.remove(0),
    "machine": lambda host, machine: host.remove(machine),
    "load": lambda host, machine: machine.load(0),
    "invlpg": lambda host, machine: machine.invlpg(0),
    "flush": lambda host, machine: machine.tlb.reset(),
    "user space": lambda host, machine: machine.vmm.dirty_log(0),
}


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_a_method_of_the_vmm_may_not_do(what: str, mmu: str) -> None:
    """Each method refuses it, with nothing changed; afterwards it is done."""
    refused: dict[str, str] = {}

    def before(name: str) -> None:
        if busy:
            with pytest.raises(PolicyError, match="is under way") as found:
                REFUSED[what](*busy)
            refused[name] = str(found.value)

    busy: list[Any] = []
    host = Host([(SMALL.replace(mmu=mmu, vmm=vmm_class(before), tpr="apicv"), 3)], cpus=2, **BARE)
    (machine,) = host.machines
    tables(machine)
    host.place(1, 0)
    machine.vmm.start_dirty_log(0)
    busy += [host, machine]
    before_all = host.totals()["vpids"]
    machine.load(0)
    machine.exit_instruction(ExitReason.CPUID)
    host.place(0, 1)
    host.place(1, 0)
    machine.vmm.dirty_log(0)
    assert refused.keys() >= {"handle", "default", "vcpu_put", "vcpu_load", "vcpu_enter_guest", "flush_pml_buffer"}
    assert host.totals()["vpids"] == before_all
    assert host.vcpus_of(machine) == (0, 1, 2)
    busy.clear()
    REFUSED["user space" if what == "run" else what](host, machine)


def test_a_policy_may_still_use_user_space_from_a_python_vmm() -> None:
    """It handles the exit, which the VMM passes on to it; what it asks of user space is done."""
    pages: list[int] = []

    class Looks(Policy):
        def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
            machine.vmm.start_dirty_log(0)
            pages.append(int(np.count_nonzero(machine.vmm.dirty_log(0))))
            return machine.default()

    machine = Machine(SMALL.replace(vmm="python"), policy=Looks(), **BARE)
    tables(machine)
    for _ in range(2):
        machine.exit_instruction(ExitReason.CPUID)
        machine.store(0, 5)
    machine.exit_instruction(ExitReason.CPUID)
    assert pages[0] == 0
    assert pages[1] > 0


@pytest.mark.parametrize("tpr", [None, "apicv", "trap", "flexpriority"])
@pytest.mark.parametrize("mmu", ["ept", "shadow"])
def test_a_vcpu_whose_vmm_raises_as_it_comes_has_not_come(mmu: str, tpr: str | None) -> None:
    """In the place of the last one, which has ended: its VPID comes back, what is kept of it can be asked."""
    raises: list[bool] = []

    def before(name: str) -> None:
        if raises and name == "vcpu_load":
            raise MischiefError

    def run() -> None:
        vmm = vmm_class(before)
        host = Host([(SMALL.replace(mmu=mmu, tpr=tpr, vmm=vmm, exit_log=9), 1)], cpus=1)
        (machine,) = host.machines
        apic, log = machine.apic, len(machine.exit_log())
        host.run(0, 0, *few())
        host.remove(0)
        machine.vmm.start_dirty_log(0)  # its VMM has a port of the place of the vCPU again
        raises.append(True)
        for _ in range(3):
            with pytest.raises(MischiefError):
                host.add_vcpu(machine)
            assert (host.totals()["vpids"], host.vcpus_of(machine)) == (0, ())
            assert apic is None or (len(apic.page), apic.deliveries) == (4096, [])
            machine.vmm.dirty_log(0)
        raises.clear()
        vcpu = host.add_vcpu(machine)
        assert (vcpu, host.vpid(vcpu)) == (1, 1)
        out = np.zeros(4, np.uint64)
        host.run(vcpu, 0, *few(), out)
        assert out.all()
        assert len(machine.exit_log()) > log
        if apic is not None:
            assert machine.apic is apic
            assert len(apic.page) == 4096

    forked(run)


@pytest.mark.parametrize("mmu", ["ept", "shadow"])
@pytest.mark.parametrize(
    "where", ["__init__", "allocate_vpid", "vcpu_reset", "create_lapic", "update_cpu_dirty_logging"]
)
def test_a_machine_that_was_not_made_leaves_zeros(where: str, mmu: str) -> None:
    """Whatever its VMM had written until it raised: memory, VPIDs, and who is there are as before."""
    kept: list[Any] = []

    def before(name: str) -> None:
        if name == where:
            raise MischiefError

    host = Host([SMALL], cpus=1)
    host.run(0, 0, *few())
    free, size = host.free_memory, 256 << 20
    vmm = vmm_class(before)

    class Keeps(vmm):  # type: ignore[valid-type, misc]
        def __init__(self, vm: Any) -> None:
            kept.append(vm)
            super().__init__(vm)

    at = guest_memory_at(host.machines[0]) + (64 << 20)
    if where == "update_cpu_dirty_logging":
        machine = host.add(SMALL.replace(mmu=mmu, vmm=Keeps, tpr="apicv"))
        with pytest.raises(MischiefError):
            machine.vmm.start_dirty_log(0)
        assert host.memory.u8[at : at + size].any()
        host.remove(machine)
    else:
        with pytest.raises(MischiefError):
            host.add(SMALL.replace(mmu=mmu, vmm=Keeps, tpr="apicv"))
    assert not host.memory.u8[at : at + size].any()
    assert (host.free_memory, len(host.machines), host.totals()["vpids"], host.vcpus) == (
        free, 1, 1, 1 + (where == "update_cpu_dirty_logging"),
    )  # fmt: skip
    for vm in kept:
        with pytest.raises(PolicyError, match="does not stand still"):
            vm.read_guest(0)
    assert guest_memory_at(host.add(SMALL)) > at
