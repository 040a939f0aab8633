"""Handlers of exits beside a local APIC: they post interrupts, and run no instruction of it."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmu import Action, Config, Exit, Machine, Policy, PolicyError
from fastmmu.ops import Op
from tests.support.apic_guest import PAGE, SVR, Seen, bare, exits
from tests.support.apic_tables import TPR
from tests.support.tpr_ways import WAYS


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
