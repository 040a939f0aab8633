"""KVM's policy in Python and in the kernels: the same exits, the same counters."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastmmu import Action, Config, ConfigError, Exit, Kvm, Machine, Op, Policy, PolicyError
from fastmmu.exits import ExitReason

Events = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint64]]


def events(n: int = 3000, processes: int = 3, seed: int = 5) -> Events:
    """Accesses of some processes, unmaps, instructions that exit."""
    rng = np.random.default_rng(seed)
    op = rng.choice([Op.READ, Op.WRITE, Op.MODIFY, Op.FETCH], n).astype(np.uint8)
    size = np.full(n, 8, np.uint8)
    addr = (np.uint64(1 << 40) + rng.integers(0, 200, n).astype(np.uint64) * np.uint64(4096)).astype(np.uint64)
    for at in range(50, n, 97):
        op[at], size[at], addr[at] = Op.SWITCH, 0, rng.integers(0, processes)
    for at in range(30, n, 89):
        op[at], size[at] = Op.UNMAP, 0
    for at in range(60, n, 41):
        op[at], size[at], addr[at] = Op.EXIT, 0, ExitReason.CPUID
    return op, size, addr


SCHEMES = [
    {"mmu": mmu, "kvm": kvm, "vpid": vpid, **more}
    for mmu, kvm, vpid in itertools.product(("shadow", "ept"), ("slides", "6.1"), (False, True))
    for more in (
        {},
        {"pages": "thp", "tdp_mmu": False, "ept_ad": False},
        {"host_memory": "512k", "nx_huge_pages": True},
    )
]


def both(fields: dict[str, Any], given: Events) -> tuple[Machine, Machine]:
    found = []
    for vmm in ("kernel", "python"):
        machine = Machine(Config(memory="256M", vmm=vmm, **fields))
        if machine.vmm:
            machine.vmm.start_dirty_log(0)
        half = len(given[0]) // 2
        machine.run(*[column[:half] for column in given])
        machine.vmm.dirty_log(0)
        machine.run(*[column[half:] for column in given])
        machine.vmm.stop_dirty_log(0)
        found.append(machine)
    return found[0], found[1]


@pytest.mark.parametrize("fields", SCHEMES, ids=str)
def test_the_same_counters(fields: dict[str, Any]) -> None:
    kernel, python = both(fields, events())
    assert python.counters() == kernel.counters()
    assert python.vmm.stats() == kernel.vmm.stats()
    assert sorted(python.vmm.table_pages()) == sorted(kernel.vmm.table_pages())
    assert python.tlb.counters() == kernel.tlb.counters()


def test_a_class_of_ones_own() -> None:
    class Counting(Kvm):
        seen = 0

        def default(self, vcpu: Any, exit: Exit) -> int:
            Counting.seen += 1
            return super().default(vcpu, exit)

    machine = Machine(Config(mmu="ept", memory="256M", vmm=Counting))
    machine.run(*events())
    assert Counting.seen == machine.counters()["vm_exits"] > 0


def test_a_policy_before_it() -> None:
    class Seen(Policy):
        def on_cpuid(self, machine: Machine, exit: Exit) -> Action:
            seen.append(exit.reason)
            return machine.default()

    counters = []
    for vmm in ("kernel", "python"):
        seen: list[ExitReason] = []
        machine = Machine(Config(mmu="ept", memory="256M", vmm=vmm), policy=Seen())
        machine.run(*events())
        counters.append((machine.counters(), len(seen)))
    assert counters[0] == counters[1]
    assert counters[0][1] > 10


def test_what_raises_in_it_comes_out() -> None:
    class Broken(Kvm):
        def default(self, vcpu: Any, exit: Exit) -> int:
            if Broken.broken and exit.reason == ExitReason.CPUID:
                raise ArithmeticError("mine")
            return super().default(vcpu, exit)

        broken = True

    machine = Machine(Config(mmu="ept", memory="256M", vmm=Broken))
    op, size, addr = events()
    with pytest.raises(ArithmeticError, match="mine"):
        machine.run(op, size, addr)
    done = machine.events
    assert op[done] == Op.EXIT
    Broken.broken = False
    machine.run(op[done:], size[done:], addr[done:])
    assert machine.events == len(op)


@pytest.mark.parametrize("vmm", ["c", 3, None, object, Kvm.__new__(Kvm)], ids=lambda vmm: type(vmm).__name__)
def test_what_is_no_vmm(vmm: Any) -> None:
    with pytest.raises(ConfigError, match=r"vmm=.*choose 'kernel', 'python' or a class that derives from fastmmu\.Kvm"):
        Config(vmm=vmm)


def test_a_result_names_the_class() -> None:
    class Mine(Kvm):
        pass

    assert Config(vmm=Mine).fields()["vmm"].endswith("Mine")
    assert Config().fields()["vmm"] == "kernel"


def test_what_it_counts() -> None:
    class Counting(Kvm):
        def default(self, vcpu: Any, exit: Exit) -> int:
            vcpu.count("ept_spurious", 5)
            self.vm.count_stat("mmio_exits")
            for count in (vcpu.count, self.vm.count_stat):
                with pytest.raises(PolicyError, match=r"no counter 'served'; choose from .*pf_fixed"):
                    count("served")
                with pytest.raises(PolicyError, match="n=-1"):
                    count("pf_fixed", -1)
            return super().default(vcpu, exit)

    machine = Machine(Config(mmu="ept", memory="256M", vmm=Counting))
    machine.run(*events(100))
    exits = machine.counters()["vm_exits"]
    assert machine.counters()["ept_spurious"] == 5 * exits > 0
    assert machine.vmm.stats()["mmio_exits"] == exits
