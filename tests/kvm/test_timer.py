"""The timer of the local APIC, and handlers that take time: when what they deliver comes, in each way of the TPR."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmu.ops import Op
from tests.support.ipi_programs import CURRENT, DIVIDE, INITIAL, LVT_TIMER, TPR, machine, ready, run


@pytest.mark.parametrize("tpr", ["native", "trap", "patch", "flexpriority", "apicv"])
def test_the_timer_runs_out_after_exactly_as_many_accesses(tpr: str) -> None:
    """One access is one bus clock. Divided by 4: 10 counts are 40 accesses."""
    m = machine("native", "trap") if tpr == "native" else machine("ept", tpr)
    apic = m.apic
    apic.write(DIVIDE, 0b0001)
    apic.write(LVT_TIMER, 1 << 17 | 0x41)
    apic.write(INITIAL, 10)
    apic.wait(15)
    assert apic.read(CURRENT) == 7
    m.run(np.zeros(70, np.uint8), np.ones(70, np.uint8), np.full(70, 0x40_0000, np.uint64))
    assert [tuple(each) for each in apic.deliveries] == [(0x41, 40), (0x41, 80)]
    apic.write(LVT_TIMER, 1 << 16 | 1 << 17 | 0x41)
    apic.wait(80)
    assert (len(apic.deliveries), m.counters()["apic_timer"]) == (2, 4)  # masked, it runs on
    apic.write(LVT_TIMER, 2 << 17 | 0x51)
    apic.wrmsr(0x6E0, apic.now + 30)
    assert apic.rdmsr(0x6E0) == apic.now + 30
    apic.wait(100)
    assert tuple(apic.deliveries[-1]) == (0x51, 195)
    assert (apic.rdmsr(0x6E0), apic.read(CURRENT)) == (0, 0)


@pytest.mark.parametrize(("kvm", "reason"), [("slides", "external_interrupt"), ("6.1", "preemption_timer")])
def test_the_vmm_learns_of_the_timer_by(kvm: str, reason: str) -> None:
    m = machine(kvm=kvm)
    m.apic.write(LVT_TIMER, 0x41)
    m.apic.write(INITIAL, 10)
    before = m.counters()["exits_by_reason"].get(reason, 0)
    m.apic.wait(1000)
    assert m.counters()["exits_by_reason"][reason] - before == 1
    assert len(m.apic.deliveries) == 1


def test_a_timer_goes_on_while_another_vcpu_runs() -> None:
    host = ready(cpus=1, mmu="ept", tpr="apicv")
    run(host, 0, 0, [(Op.APIC_WRITE, LVT_TIMER << 32 | 2 << 17 | 0x41), (Op.TSC_DEADLINE, 20)])
    run(host, 1, 0, [(Op.READ, 0x40_0000)] * 50)
    host.place(0, 0)
    assert [tuple(each) for each in host.deliveries(0)] == [(0x41, 50)]
    assert host.counters(0)["apic_latency"] == 30


def test_handlers_nest_by_class() -> None:
    """IRQL: a higher class interrupts, an equal or lower one waits; each returns to the TPR that it found."""
    for tpr in ("trap", "patch", "flexpriority", "apicv"):
        m = machine(tpr=tpr, guest_handler="irql", handler_length=100)
        for wait, vector in ((0, 0x51), (10, 0x55), (10, 0x41), (10, 0x91), (10, 0x61), (0, 0x99)):
            m.apic.wait(wait)
            m.apic.interrupt(vector)
        assert m.apic.read(TPR) == 0x90
        m.apic.wait(1000)
        # 51H runs 30 accesses, 91H interrupts it to 130, then 99H and 61H; 70 are left of 51H; 55H, 41H after it
        assert [tuple(each) for each in m.apic.deliveries] == [
            (0x51, 0), (0x91, 30), (0x99, 130), (0x61, 230), (0x55, 400), (0x41, 500)
        ]  # fmt: skip
        assert (m.counters()["apic_nested"], m.apic.read(TPR)) == (3, 0)


@pytest.mark.parametrize("tpr", ["native", "trap", "patch", "flexpriority", "apicv"])
@pytest.mark.parametrize("handler", ["eoi", "irql"])
def test_the_timer_runs_out_as_a_handler_returns(tpr: str, handler: str) -> None:
    """At one and the same access, and the VMM learns of both."""
    config = {"guest_handler": handler, "handler_length": 10}
    m = machine("native", "trap", **config) if tpr == "native" else machine("ept", tpr, **config)
    m.apic.write(LVT_TIMER, 0x31)
    m.apic.interrupt(0x51)
    m.apic.write(DIVIDE, 0b1011)
    m.apic.write(INITIAL, 10)
    before = m.counters()["exits_by_reason"].get("external_interrupt", 0)
    m.apic.wait(100)
    assert [tuple(each) for each in m.apic.deliveries] == [(0x51, 0), (0x31, 10)]
    assert m.counters()["exits_by_reason"].get("external_interrupt", 0) - before == (tpr != "native")


def test_without_raising_the_irql_nothing_nests() -> None:
    m = machine(guest_handler="eoi", handler_length=100)
    m.apic.interrupt(0x51)
    m.apic.wait(30)
    m.apic.interrupt(0x91)
    m.apic.wait(500)
    assert [tuple(each) for each in m.apic.deliveries] == [(0x51, 0), (0x91, 100)]
    assert m.counters()["apic_nested"] == 0
