"""vCPUs with local APICs: interprocessor interrupts, timers and nested handlers, the same in each way of the TPR."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

from fastmmu import Config, Host
from fastmmu.ops import Op
from fastmmu.reference.processors import Processors

PROGRAMS = int(os.environ.get("FASTMMU_EXAMPLES", "10"))
FIRST = int(os.environ.get("FASTMMU_SEED", "0"))
TPR, EOI, SVR, LDR = 0x80, 0xB0, 0xF0, 0xD0
LVT_TIMER, INITIAL, CURRENT, DIVIDE = 0x320, 0x380, 0x390, 0x3E0
WAYS: dict[str, dict[str, Any]] = {
    "trap": {"mmu": "ept", "tpr": "trap"},
    "trap, no shadow": {"mmu": "ept", "tpr": "trap", "tpr_shadow": False},
    "trap, shadow paging": {"mmu": "shadow", "tpr": "trap"},
    "patch": {"mmu": "ept", "tpr": "patch"},
    "patch, shadow paging": {"mmu": "shadow", "tpr": "patch"},
    "patch, one vCPU": {"mmu": "ept", "tpr": "patch", "tpr_patch": "one-vcpu"},
    "flexpriority": {"mmu": "ept", "tpr": "flexpriority"},
    "flexpriority, slides": {"mmu": "ept", "tpr": "flexpriority", "tpr_threshold": "slides"},
    "flexpriority, shadow paging": {"mmu": "shadow", "tpr": "flexpriority", "vpid": True, "kvm": "6.1"},
    "apicv": {"mmu": "ept", "tpr": "apicv", "vpid": True, "kvm": "6.1"},
    "apicv, shadow paging": {"mmu": "shadow", "tpr": "apicv"},
}
Event = tuple[Op, int]
Turn = tuple[int, int, list[Event]]
"""vCPU, CPU, what it does there."""


# ---- random programs -------------------------------------------------------------------------------------------


def icr(chance: random.Random, vcpus: int, x2apic: bool) -> int:
    """An ICR of any kind that is a vector, and now and then an NMI, INIT or start-up."""
    low = chance.randrange(10, 256) | chance.choices([0, 1, 4, 5, 6], [12, 4, 1, 1, 1])[0] << 8
    shorthand = chance.choices(range(4), [6, 1, 1, 2])[0]
    if chance.random() < 0.5:
        destination = chance.choice([*range(vcpus + 1), 0xFF, 0xFFFF_FFFF if x2apic else 0xFF])
    else:
        low, destination = low | 1 << 11, chance.randrange(1, 1 << vcpus)
    return low | shorthand << 18 | destination << 32


def turns(chance: random.Random, vcpus: int, cpus: int, length: int, *, x2apic: bool = False) -> list[Turn]:
    """Each vCPU sets its APIC up; then TPR traffic, IPIs, timers, devices, CLI and STI, between reads of memory."""

    def register(offset: int, value: int, site: int = 0) -> Event:
        if x2apic:
            return Op.MSR_WRITE, 0x800 + (offset >> 4) << 32 | value
        return Op.APIC_WRITE, site << 48 | offset << 32 | value

    def some() -> Event:
        site = chance.randrange(12)
        kind = chance.choices(range(12), [24, 8, 10, 12, 6, 2, 1, 30, 4, 4, 2, 3])[0]
        match kind:
            case 0:
                return register(TPR, chance.randrange(16) << 4 | chance.choice([0, 0, 5]), site)
            case 1:
                if x2apic:
                    return Op.MSR_READ, 0x808 << 32
                return Op.APIC_READ, site << 48 | chance.choice([TPR, TPR, CURRENT]) << 32
            case 2:
                return Op.DEVICE_INTERRUPT, chance.randrange(16, 256) | chance.choice([0, 0, 0, 256])
            case 3:
                return Op.IPI, icr(chance, vcpus, x2apic)
            case 4:
                return Op.INTERRUPT_FLAG, chance.randrange(2)
            case 5:
                return register(EOI, 0)
            case 6:
                return Op.EXIT, 10
            case 8:
                mode = chance.choice([0, 1, 2, 2])
                return register(LVT_TIMER, chance.choice([0, 0, 0, 1]) << 16 | mode << 17 | chance.randrange(16, 256))
            case 9:
                return register(INITIAL, chance.choice([0, *range(1, 30)]))
            case 10:
                return register(DIVIDE, chance.choice([0b1011, 0, 1]))
            case 11:
                return Op.TSC_DEADLINE, chance.choice([0, 1, *range(2, 60)])
        return Op.READ, 0x40_0000 + 4096 * chance.randrange(64)

    found: list[Turn] = []
    for vcpu in range(vcpus):
        start: list[Event] = [(Op.MSR_WRITE, 0x1B << 32 | 0xFEE0_0D00)] if x2apic else [register(LDR, 1 << vcpu + 24)]
        found.append((vcpu, vcpu % cpus, [*start, register(SVR, 0x1FF)]))
    while length > 0:
        events = [some() for _ in range(chance.randrange(1, 25))]
        found.append((chance.randrange(vcpus), chance.randrange(cpus), events))
        length -= len(events)
    # at last all is let through, so that nothing can hide
    found += [(vcpu, 0, [register(TPR, 0), (Op.INTERRUPT_FLAG, 1)]) for vcpu in range(vcpus)]
    return found


def modelled(program: list[Turn], vcpus: int, handler: str, length: int, *, posted: bool = False) -> Processors:
    """The program by the specification."""
    want = Processors(vcpus, handler, length, posted)
    for vcpu, cpu, events in program:
        want.place(vcpu, cpu)
        for op, addr in events:
            match op:
                case Op.READ:
                    want.access(vcpu)
                case Op.APIC_WRITE:
                    want.write(vcpu, addr >> 32 & 0xFFFF, addr & 0xFFFF_FFFF)
                case Op.MSR_WRITE if addr >> 32 == 0x1B:
                    want.all[vcpu].apic.x2apic = True
                case Op.MSR_WRITE:
                    want.write(vcpu, (addr >> 32 & 0xFF) << 4, addr & 0xFFFF_FFFF)
                case Op.DEVICE_INTERRUPT:
                    want.interrupt(vcpu, addr & 0xFF, level=bool(addr >> 8))
                case Op.INTERRUPT_FLAG:
                    want.set_interrupts(vcpu, bool(addr))
                case Op.IPI:
                    want.write_icr(vcpu, addr)
                case Op.TSC_DEADLINE:
                    want.set_deadline(vcpu, addr)
    return want


def run(host: Host, vcpu: int, cpu: int, events: list[Event]) -> None:
    op = np.array([op for op, _ in events], np.uint8)
    host.run(vcpu, cpu, op, (op <= 3).astype(np.uint8), np.array([addr for _, addr in events], np.uint64))


def host_of(vcpus: int, cpus: int, **config: Any) -> Host:
    return Host([(Config(memory="64M", **config), vcpus)], cpus=cpus)


def deliveries(host: Host) -> list[list[tuple[int, int]]]:
    return [[tuple(each) for each in host.deliveries(vcpu)] for vcpu in range(host.vcpus)]  # type: ignore[misc]


@pytest.mark.parametrize("x2apic", [False, True], ids=["xAPIC", "x2APIC"])
@pytest.mark.parametrize("handler", ["eoi", "irql"])
def test_all_ways_deliver_the_same_interrupts_at_the_same_points(handler: str, x2apic: bool) -> None:
    """None lost, none early, on whichever vCPU and whatever the schedule; kicks and notifications as KVM has them."""
    delivered = nested = timers = 0
    exits, totals = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0)
    for seed in range(FIRST, FIRST + PROGRAMS):
        chance = random.Random(seed)
        vcpus, cpus, length = chance.randrange(1, 5), chance.randrange(1, 4), chance.choice([0, 0, 3, 12])
        program = turns(chance, vcpus, cpus, 200, x2apic=x2apic)
        plain, posted = (modelled(program, vcpus, handler, length, posted=posted) for posted in (False, True))
        want = plain.delivered()
        assert want == posted.delivered()
        delivered += sum(map(len, want))
        for name, config in WAYS.items():
            host = host_of(vcpus, cpus, guest_handler=handler, handler_length=length, **config)
            for turn in program:
                run(host, *turn)
            assert deliveries(host) == want, (seed, name)
            counters = [host.counters(vcpu) for vcpu in range(vcpus)]
            assert [each["apic_nested"] for each in counters] == [each.nested for each in plain.all]
            if config["mmu"] == "ept":
                total = host.totals()
                kicks = (0, posted.notifications) if config["tpr"] == "apicv" else (plain.kicks, 0)
                assert (total["kicks"], total["notifications"]) == kicks, (seed, name)
                totals[name] += sum(kicks)
            exits[name] += sum(each["vm_exits"] for each in counters)
            timers += sum(each["apic_timer"] for each in counters)
            nested += sum(each["apic_nested"] for each in counters)
    assert delivered > 20 * PROGRAMS
    assert timers > PROGRAMS
    assert totals["trap"] > 0 < totals["apicv"]
    assert nested > 0
    assert exits["trap, no shadow"] > exits["flexpriority"] > exits["apicv"]
    print(f"{PROGRAMS} programs, {delivered} interrupts; exits {exits}; IPIs of the host {totals}")
