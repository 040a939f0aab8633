"""The local APIC: priorities exhaustively, specification and kernel on random programs."""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

import pytest

from fastmmu import reference as ref
from fastmmu.cpu import apic_py as kernel_apic
from fastmmu.cpu.apic_py import LocalApic
from fastmmu.errors import StateError
from fastmmu.reference.cpu import apic as rules

EXAMPLES = int(os.environ.get("FASTMMU_EXAMPLES", "300"))


# ---- priorities ----------------------------------------------------------------------------------------------


@pytest.fixture(params=[ref.LocalApic, LocalApic], ids=["specification", "kernel"])
def make_apic(request: pytest.FixtureRequest) -> Any:
    def make(id: int = 0) -> Any:
        apic = request.param(id)
        apic.write(rules.SVR, 0x1FF)
        return apic

    return make


def test_priorities_over_every_class(make_apic: Any) -> None:
    """TPR class x ISR x IRR, each none or any class: what is delivered, and the PPR, as apic.md §1 defines them."""
    for tpr, served, wanted in itertools.product(range(16), [None, *range(1, 16)], [None, *range(1, 16)]):
        apic = make_apic()
        if served is not None:
            rules.put_bit(apic.page, rules.ISR, served * 16 + 5, 1)
        if wanted is not None:
            assert apic.request(wanted * 16 + 9)
        apic.write(rules.TPR, tpr * 16 + 7)
        top = max(tpr, served or 0)
        assert apic.ppr == apic.read(rules.PPR) == (tpr * 16 + 7 if top == tpr else top * 16)
        delivered = wanted is not None and wanted > top
        assert apic.deliverable() == (wanted * 16 + 9 if delivered and wanted is not None else None)
        assert apic.acknowledge() == (wanted * 16 + 9 if delivered and wanted is not None else None)


def test_every_pair_of_vectors_within_and_across_classes(make_apic: Any) -> None:
    """Of two requests the higher comes first; the lower follows once nothing of its class or above is in service."""
    for low, high in itertools.combinations(range(16, 256, 3), 2):
        apic = make_apic()
        assert apic.request(low)
        assert apic.request(high)
        assert apic.acknowledge() == high
        assert apic.deliverable() is None
        apic.write(rules.EOI, 0)
        assert apic.acknowledge() == low


def test_nested_service_ends_in_the_order_of_priority(make_apic: Any) -> None:
    apic = make_apic()
    for vector in (0x31, 0x51, 0x91):
        apic.request(vector, level=vector == 0x51)
        assert apic.acknowledge() == vector
    assert [apic.end_of_interrupt() for _ in range(4)] == [None, 0x51, None, None]
    assert apic.ppr == 0


def test_worked_examples(make_apic: Any) -> None:
    for tpr, served, ppr in ((0x35, 0x61, 0x60), (0x6A, 0x61, 0x6A), (0x35, None, 0x35)):  # E1
        apic = make_apic()
        if served:
            rules.put_bit(apic.page, rules.ISR, served, 1)
        apic.write(rules.TPR, tpr)
        assert apic.ppr == ppr
        assert apic.request(0x6F)
        assert apic.deliverable() == (None if served else 0x6F)
        assert apic.request(0x71)
        assert apic.deliverable() == 0x71


def test_what_is_not_accepted(make_apic: Any) -> None:
    apic = make_apic()
    assert not apic.request(15)
    assert apic.read(rules.ESR) == rules.RECEIVE_ILLEGAL
    apic.write(rules.SVR, 0xFF)
    assert not apic.request(0x51)


def test_interprocessor_interrupts_reach_whom_they_name(make_apic: Any) -> None:
    route = kernel_apic.route if isinstance(make_apic(), LocalApic) else rules.route

    def sent(sender: int, icr: int, destination: int = 0) -> list[int]:
        apics = [make_apic(id) for id in range(4)]
        for apic in apics:
            apic.write(rules.LDR, 1 << 24 + apic.id)
        apics[2].write(rules.TPR, 0x80)
        apics[sender].write(rules.ICR_HIGH, destination << 24)
        ipi = apics[sender].write(rules.ICR_LOW, icr)
        reached: list[int] = route(apics, ipi) if ipi else []
        assert all((apic.deliverable() == 0xA1) == (apic.id in reached) for apic in apics)
        return reached

    assert sent(1, 0x000A1, 3) == [3]
    assert sent(1, 0x000A1, 0xFF) == [0, 1, 2, 3]
    assert sent(1, 0x008A1, 0b0110) == [1, 2]
    assert sent(1, 0x009A1, 0b0110) == [1]  # lowest priority: 2 has TPR 80H
    assert sent(1, 0x400A1) == [1]
    assert sent(1, 0x800A1) == [0, 1, 2, 3]
    assert sent(1, 0xC00A1) == [0, 2, 3]
    assert sent(1, 0x4000F) == []  # an illegal vector
    assert sent(1, 0x404A1) == []  # NMI: not a vector


def test_the_timer_counts_down(make_apic: Any) -> None:
    apic = make_apic()
    apic.write(rules.DIVIDE, 0b0011)  # by 16
    apic.write(rules.LVT_TIMER, 1 << 17 | 0x41)
    apic.write(rules.INITIAL_COUNT, 10)
    assert apic.advance(80) == 0
    assert apic.read(rules.CURRENT_COUNT) == 5
    assert apic.advance(80) == 1
    assert apic.acknowledge() == 0x41
    assert apic.advance(1600) == 10
    apic.write(rules.LVT_TIMER, 0x1_0041)  # masked, one shot
    assert apic.advance(160) == 1
    assert apic.advance(10_000) == 0


def test_the_timer_by_a_deadline(make_apic: Any) -> None:
    """SDM: the MSR is 0 outside the mode and once it has fired; 0 disarms; a time that has passed fires at once."""
    apic = make_apic()
    assert not apic.set_deadline(50, 10)
    assert (apic.deadline, apic.advance(100)) == (0, 0)
    apic.write(rules.LVT_TIMER, 2 << 17 | 0x41)
    apic.write(rules.INITIAL_COUNT, 10)
    assert (apic.read(rules.INITIAL_COUNT), apic.advance(100)) == (0, 0)
    assert not apic.set_deadline(500, 400)
    assert (apic.deadline, apic.read(rules.CURRENT_COUNT), apic.advance(99), apic.deliverable()) == (500, 0, 0, None)
    assert (apic.advance(1), apic.deadline, apic.acknowledge(), apic.advance(1000)) == (1, 0, 0x41, 0)
    apic.write(rules.EOI, 0)
    apic.set_deadline(2000, 1000)
    apic.set_deadline(0, 1500)
    assert (apic.advance(1000), apic.deliverable()) == (0, None)
    assert apic.set_deadline(3000, 3000)
    assert apic.acknowledge() == 0x41
    apic.set_deadline(4000, 3000)
    apic.write(rules.LVT_TIMER, 0x42)  # to one shot: disarmed
    assert (apic.deadline, apic.advance(5000)) == (0, 0)


def test_a_new_divisor_keeps_the_count(make_apic: Any) -> None:
    apic = make_apic()
    apic.write(rules.LVT_TIMER, 0x41)
    apic.write(rules.DIVIDE, 0b0011)  # by 16
    apic.write(rules.INITIAL_COUNT, 10)
    apic.advance(32)
    apic.write(rules.DIVIDE, 0b1011)  # by 1
    assert apic.read(rules.CURRENT_COUNT) == 8
    assert (apic.advance(7), apic.advance(1)) == (0, 1)


def test_registers_of_x2apic_mode(make_apic: Any) -> None:
    """The id has 32 bits, the logical id follows from it; where interrupts go is in test_apic_destinations."""
    apic = make_apic(17)
    apic.x2apic = True
    assert (apic.read(rules.ID), apic.read(rules.LDR), apic.x2apic) == (17, 0x10002, True)
    apic.x2apic = False
    assert (apic.read(rules.ID), apic.read(rules.LDR), apic.x2apic) == (17 << 24, 0, False)


def test_what_waits_is_delivered_while_software_disables_the_apic(make_apic: Any) -> None:
    """SDM, "State of the Local APIC After It Has Been Software Disabled": pending interrupts are held, not dropped."""
    apic = make_apic()
    apic.request(0x51)
    apic.write(rules.SVR, 0xFF)
    assert not apic.request(0x61)
    assert apic.acknowledge() == 0x51


# ---- specification and kernel on random programs ----------------------------------------------------------------


def test_local_apics_do_the_same() -> None:
    random.seed(1)
    for _ in range(EXAMPLES):
        pair = ref.LocalApic(3), LocalApic(3)
        for _ in range(60):
            offset, value = 16 * random.randrange(72), random.choice([random.getrandbits(32), random.getrandbits(9)])
            op, timer = random.randrange(8), random.random() < 0.3
            if timer:
                offset = random.choice([rules.LVT_TIMER, rules.INITIAL_COUNT, rules.DIVIDE, rules.CURRENT_COUNT])
            if op == 0:
                assert pair[0].read(offset) == pair[1].read(offset)
            elif op == 6:
                tsc = random.getrandbits(9)
                assert pair[0].set_deadline(value, tsc) == pair[1].set_deadline(value, tsc)
            elif op == 7:
                wide = value | random.getrandbits(32) << 32
                sent = [apic.send(wide) for apic in pair]
                assert [tuple(vars(sent[0]).values())] == [sent[1]] if sent[0] else sent[1] is None
                for apic in pair if value & 3 == 0 else ():
                    apic.x2apic = not apic.x2apic
            elif op == 1:
                sent = [apic.write(offset, value) for apic in pair]
                assert [tuple(vars(sent[0]).values())] == [sent[1]] if sent[0] else sent[1] is None
            elif op == 2:
                assert pair[0].request(value & 255, level=value & 1 == 1) == pair[1].request(
                    value & 255, level=value & 1 == 1
                )
            elif op == 3:
                assert pair[0].acknowledge() == pair[1].acknowledge()
            elif op == 4:
                assert pair[0].end_of_interrupt() == pair[1].end_of_interrupt()
            else:
                assert pair[0].advance(value) == pair[1].advance(value)
            if random.randrange(8) == 0:
                for apic in pair:
                    apic.write(rules.SVR, 0x1FF)
            assert pair[0].page == pair[1].page
            assert pair[0].deliverable() == pair[1].deliverable()
            assert pair[0].ticks_left == pair[1].ticks_left
            assert pair[0].deadline == pair[1].deadline


def test_values_are_checked() -> None:
    with pytest.raises(StateError):
        LocalApic(256)
