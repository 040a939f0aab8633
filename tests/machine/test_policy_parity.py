"""Policy in Python that asks for the default, against the default in the kernel layer, at every exit that happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmmu import Action, Config, Exit, ExitReason, Machine, Op, Policy
from fastmmu.trace.tpr import with_tpr
from tests.support.event_lists import events, program, run, with_events
from tests.support.flat_guest import flat

LINUX = Config(memory="256M", kvm="6.1", vpid=True)
EPT, SHADOW = LINUX.replace(mmu="ept"), LINUX.replace(mmu="shadow")
Drive = Callable[[Machine], Any]
SVR, TPR, ICR_HIGH, ICR = 0xF0, 0x80, 0x310, 0x300


def of_a_program(machine: Machine) -> Any:
    """Page faults, edits of page tables, address spaces, interrupts of the host, CPUID."""
    changes = ((Op.SWITCH, 1), (Op.SWITCH, 0), (Op.INVLPG, 0x40_0000), (Op.UNMAP, 0x5555_5555_5000), (Op.INTERRUPT, 32))
    return run(machine, with_events(program(1500), 100, *changes))


def of_an_apic(machine: Machine) -> Any:
    """Task priority by page, CR8 and MSR; interrupts that wait, level-triggered ones, one sent to itself."""
    found = run(machine, with_tpr(program(1500, seed=1), "winxp"))
    more = [
        (Op.APIC_WRITE, SVR << 32 | 0x1FF), (Op.CR8_WRITE, 15), (Op.DEVICE_INTERRUPT, 0x51), (Op.CR8_READ, 0),
        (Op.CR8_WRITE, 0), (Op.INTERRUPT_FLAG, 0), (Op.DEVICE_INTERRUPT, 0x61), (Op.INTERRUPT_FLAG, 1),
        (Op.DEVICE_INTERRUPT, 0x151), (Op.APIC_WRITE, ICR_HIGH << 32), (Op.APIC_WRITE, ICR << 32 | 0x44071),
        *[(Op.APIC_WRITE, TPR << 32 | 0xF0)] * 2, (Op.DEVICE_INTERRUPT, 0x61), (Op.APIC_WRITE, TPR << 32),
        (Op.APIC_READ, 0x20 << 32), (Op.MSR_WRITE, 0x1B << 32 | 0xFEE0_0D00), (Op.MSR_WRITE, 0x808 << 32 | 0x50),
        (Op.MSR_READ, 0x808), (Op.MSR_WRITE, 0x808 << 32), (Op.READ, 0x1000_0000),
    ]  # fmt: skip
    return found, run(machine, events(*more)), machine.apic.deliveries, machine.apic.page


def of_devices(machine: Machine) -> Any:
    """Accesses to no memory, twice: the second by its mark."""
    return [machine.access(0x1000_0000 + 8 * i, access) for i in range(3) for access in ("r", "w")]


def of_a_log(machine: Machine) -> Any:
    """More pages than the processor logs before it exits; the log is read in between."""
    machine.vmm.start_dirty_log(0)
    found = []
    for _ in range(2):
        found += [machine.store(page << 12, 1) for page in range(16, 1100)]
        found.append(machine.vmm.dirty_log(0).tobytes())
    return found


def of_a_host(machine: Machine) -> Any:
    """Ageing, pages taken and merged."""
    found = []
    for page in range(16, 80):
        found.append(machine.store(page << 12, 1))
        machine.vmm.young(0, page, clear=True, flush=True)
        found.append(machine.access(page << 12))
        if page % 3 == 0:
            machine.vmm.swap_out(0, page)
    machine.vmm.merge(0, range(16, 24))
    return found + [machine.store(page << 12, 2) for page in range(16, 80)]


BARE = {of_devices, of_a_log, of_a_host}
SMALL = {"memory": "64M"}
SCENARIOS: dict[str, tuple[Config, Drive]] = {
    **{
        f"program, {config.name}, {config.kvm}": (config.replace(exit_every=200), of_a_program)
        for mmu in ("ept", "shadow")
        for kvm in ("slides", "6.1")
        for config in (LINUX.replace(mmu=mmu, kvm=kvm), LINUX.replace(mmu=mmu, kvm=kvm, vpid=False))
    },
    "program, older MMU": (EPT.replace(tdp_mmu=False, table_pages=20), of_a_program),
    "program, large pages": (EPT.replace(pages="thp", thp_threshold=8, nx_huge_pages=True), of_a_program),
    "program, short host": (EPT.replace(ept_ad=False, host_memory="256k", host_reclaim="lru"), of_a_program),
    "program, short host, shadow": (SHADOW.replace(host_memory="256k"), of_a_program),
    **{
        f"apic, {mmu}, {way}, {kvm}": (LINUX.replace(mmu=mmu, kvm=kvm, tpr=way, tpr_shadow=shadow), of_an_apic)
        for mmu in ("ept", "shadow")
        for kvm in ("slides", "6.1")
        for way, shadow in (("trap", False), ("patch", False), ("flexpriority", True), ("apicv", True))
    },
    "devices, EPT": (EPT.replace(**SMALL), of_devices),
    "devices, AMD": (EPT.replace(**SMALL, vendor="amd"), of_devices),
    "devices, EPT, slides": (EPT.replace(**SMALL, kvm="slides"), of_devices),
    "devices, shadow": (SHADOW.replace(**SMALL), of_devices),
    "log, PML": (EPT.replace(**SMALL, pml=True), of_a_log),
    "log, large": (EPT.replace(**SMALL, host_pages="2m", eager_page_split=False), of_a_log),
    "log, shadow": (SHADOW.replace(**SMALL), of_a_log),
    "host, tracked": (EPT.replace(**SMALL, ept_ad=False, host_pages="untouched"), of_a_host),
    "host, shadow": (SHADOW.replace(**SMALL, host_pages="untouched"), of_a_host),
}


def asking(*reasons: str) -> Policy:
    """A policy that takes these reasons over and does at each what would have happened."""

    def handler(self: Policy, machine: Machine, exit: Exit) -> Action:
        self.seen[exit.reason.name.lower()] += 1  # type: ignore[attr-defined]
        return machine.default()

    policy = type("Asking", (Policy,), {f"on_{reason}": handler for reason in reasons})()
    policy.seen = dict.fromkeys(reasons, 0)
    return policy


def outcome(name: str, policy: Policy | None) -> tuple[Any, ...]:
    config, drive = SCENARIOS[name]
    machine = flat(config, policy=policy) if drive in BARE else Machine(config, policy=policy)
    found = drive(machine)
    return found, machine.counters(), machine.vmm.counters(), machine.tlb.counters(), machine.vmcs


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    np.testing.assert_equal(other, one)


@pytest.mark.parametrize("name", SCENARIOS)
def test_equal_counters_and_results(name: str) -> None:
    """For each reason of the run alone, and for all: counters of machine, VMM and TLB, results, VMCS."""
    plain = outcome(name, None)
    exits = plain[1]["exits_by_reason"]
    for reasons in (*((reason,) for reason in exits), tuple(reason.name.lower() for reason in ExitReason)):
        policy = asking(*reasons)
        same(plain, outcome(name, policy))
        assert policy.seen == {reason: exits.get(reason, 0) for reason in reasons}  # type: ignore[attr-defined]


def test_every_reason_that_the_machine_produces_was_met() -> None:
    """Those with a method of their own in Policy; what is not met shows nothing."""
    met = {reason for name in SCENARIOS for reason in outcome(name, None)[1]["exits_by_reason"]}
    assert met == {name.removeprefix("on_") for name in vars(Policy) if name.startswith("on_")}


def test_a_policy_that_does_something_else_shows() -> None:
    class Counts(Policy):
        def on_ept_violation(self, machine: Machine, exit: Exit) -> Action:
            machine.default()
            return Action.EMULATED

    plain = outcome("devices, EPT", None)
    with pytest.raises(AssertionError):
        same(plain, outcome("devices, EPT", Counts()))
